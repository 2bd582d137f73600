"""``python -m crossguard_jax VERB ...``, the same as ``crossguard VERB ...``."""

import sys

from crossguard_jax.cli import main

sys.exit(main())
