"""What all workers of this machine need, imported once before they are forked.

The garbage collector is off meanwhile and leaves these modules alone afterwards: it would go
through them again and again, in every worker.
"""

import gc

gc.disable()
import timm  # noqa: E402, F401

import mcmiad_monai.cohort.work  # noqa: E402, F401

gc.enable()
gc.freeze()
