"""Training of the generators: Real-ESRNet, then Real-ESRGAN, and fine-tuning on pairs.

    pictures > crops > degradation > pool > generator > losses > optimizer
     fsspec     lane    params, apply        models/    + discriminator

A step takes `batch` crops in lanes of `lane` each. A lane is what the reference has on one GPU: its
crops share a resize and a kind of noise, and it has a pool of its own. Workers take lanes in turn,
so their number changes the speed and nothing else. All randomness is a function of (seed, step,
lane): with networks, optimizers and pools a run goes on as if it had never stopped.
"""
