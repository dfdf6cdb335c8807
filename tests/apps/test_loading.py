"""What the explorer imports behind its pages' backs, and in what order."""

import os
import subprocess
import sys
from pathlib import Path


def test_scipy_is_whole_before_torch_begins(repository: Path, tmp_path: Path) -> None:
    """A page that imports `scipy.stats` amid torch's import fails: it looks for torch.Tensor."""
    (tmp_path / "torch.py").write_text("import sys\nassert 'scipy.stats' in sys.modules\n")
    (tmp_path / "timm.py").write_text("import torch\n")
    code = (
        "from explore import loading; loading._page_is_out.set(); loading._asked.set(); "
        "loading._import_libraries(); import gc, torch; "
        "print(torch.__file__, gc.get_freeze_count() > 10_000)"
    )
    folders = [tmp_path, repository / "apps", repository]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    torch, frozen = done.stdout.split()
    assert torch == str(tmp_path / "torch.py"), "the stand-in was imported"
    assert frozen == "True", "or every run of a page goes through all of it for garbage"
