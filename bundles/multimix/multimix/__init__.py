"""MultiMix: semi-supervised classification and segmentation of chest X-rays in one network."""

try:
    from label_efficient.versions import require
except ModuleNotFoundError as error:
    raise ImportError(
        "multimix needs label_efficient: `python -m pip install .` in the repository, or use the released zip"
    ) from error
require(__file__)

from label_efficient.command_line import guard_run as guard_run  # noqa: E402  (of the version that is required)
