"""`python -m kd_vision` is `kd-vision`."""

import sys

from kd_vision.cli.main import main

sys.exit(main())
