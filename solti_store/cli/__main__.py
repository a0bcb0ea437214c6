"""`python -m solti_store.cli`, for where the script `solti-store` is not on the path."""

import sys

from solti_store.cli import main

sys.exit(main())
