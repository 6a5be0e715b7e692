"""What `medclip evaluate --suite phantom` trains and scores on: the demo's phantoms, with organs and lesions.

One set for all systems: organ cells small enough for ASAP's patches, sentences about organs for HiPro-CT,
label maps of organs and lesions to segment and to point at, survival and groups.
"""

import dataclasses

from ..demo.data import PHANTOMS
from ..demo.data import SETTINGS as DEMO
from ..hipro_ct.demo import ORGANS

__all__ = ["PHANTOMS", "SETTINGS"]

SETTINGS = dataclasses.replace(DEMO, cell=2, organs=ORGANS, label_maps="corpus")
