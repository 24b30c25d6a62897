"""``python -m mcmiad_monai.cli``."""

import sys

from mcmiad_monai.cli.parser import main

sys.exit(main())
