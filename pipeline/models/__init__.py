"""Generators: the two networks, the checkpoints they are loaded from, the zoo of released weights.

zoo          which weights there are, and getting a file of them onto this node; without torch
checkpoints  from the bytes of a file that nobody vouches for to a network that is ready to run
layouts      which network a set of named tensors belongs to, in whose spelling
rrdbnet      the network of ESRGAN, ESRGAN+, BSRGAN and Real-ESRGAN
srvgg        the compact network of Real-ESRGAN's video and general models
"""
