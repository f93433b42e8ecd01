"""Generators: the two networks, the checkpoints they are loaded from, the zoo of released weights.

zoo          which weights there are, what a run's model is, and its network; quick to import
files        one file of weights, fetched once per node and verified
checkpoints  from a file that nobody vouches for to a network that is ready to run
formats      what is in such a file, read without trust
layouts      which network a set of named tensors belongs to, in whose spelling
graph        a network as data: steps for the plain forward pass and for the engine
steps        carries them out
rrdbnet      the network of ESRGAN, ESRGAN+, BSRGAN and Real-ESRGAN
srvgg        the compact network of Real-ESRGAN's video and general models
"""
