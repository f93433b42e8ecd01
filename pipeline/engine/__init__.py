"""Exact execution of a generator on images of any size: tensors only, no files.

packer    one device for many threads: who goes through the network together
upscaler  one generator on one device; a picture alone, in a batch, or on a canvas
planes    pictures as what goes through a network at once, and back
alpha     transparency: colours under it, and an enlargement of its own
network   a generator's weights: carries out a sweep on tensors
sweep     which rows of which value are computed when: pure integers
canvas    where small pictures lie on a shared canvas: pure integers
resize    the final size, while rows arrive
"""
