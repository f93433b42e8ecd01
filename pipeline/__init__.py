"""Remaster: upscale whole image archives with Real-ESRGAN generators on a Ray cluster.

manifest ─> plan ─> [ Ray Data: tiny rows ] ─> worker (one per GPU) ─> outcome rows ─> report
  uri,           identity, todo,                fetch > decode > upscale > encode > publish
  version, size  shards, refusals               pixels never leave the worker

cli       the commands: what `jobs/*.py` and `remaster` call
settings  how what a person may set is read: flags over YAML over defaults
config    what that is for upscaling; the recipe of a result and its digest
records   the rows: Source -> Item -> Outcome, and the report's Arrow schema
errors    the error tree and the table of codes
uris      which driver and which place a URI means
storage   the one door to bytes; local, s3, gcs, azure and web know their
          own, store_errors what goes wrong
manifest  what there is to do
plan      identity, output keys, collisions, shards, what is left to do
admission which items the plan refuses one by one, and their rows
ledger    the report as a database: commit, latest view, compaction
flow      one run, from the manifest to the exit code; the only Ray Data wiring
worker    one actor per device: fetch, decode, upscale, encode, publish, overlapped
logbook   what is known of one item on its way, which becomes its row
delivery  how a result gets to its place
attempts  how often an item took its worker down
images    pictures in and out, with all they say: the only place that knows codecs
engine    exact execution of a generator on images of any size
models    generators, checkpoints and the zoo of released weights
training  degradation, losses, the loop that trains generators, and their evaluation
report    summary of a run; outliers of a report
benchmark plain loops, the engine and whole runs compared on one machine
samples   pictures drawn for the demo and the tests
"""

__version__ = "0.1.0"
