"""Words and phrasings of prompts, edits and questions, as a reader of the toy world would type them.

Every list has entries for training and some that only `test` asks for (see Wording), so that scores are of phrasings that
were never trained.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

# Words of prompts and questions; answers use the first of each list. The second list is held out of training.
