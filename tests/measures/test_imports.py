"""What measures without torch loads none: the explorer's first page waits for its imports."""

import subprocess
import sys

import dino_core.measures as measures


def test_comparing_partitions_loads_no_torch():
    code = (
        "import sys; from dino_core.measures import partitions; import dino_core.gallery.clusters; "
        "import dino_core.gallery.columns; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_name_leads_to_its_function():
    for name in measures.__all__:
        assert getattr(measures, name).__name__ == name
    assert not hasattr(measures, "nothing")
