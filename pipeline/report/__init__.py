"""What a run says about itself, to people and to programs. Knows neither Ray nor torch."""
