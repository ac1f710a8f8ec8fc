"""The window of ``wsfast localize --live --display``."""

import subprocess
import sys

import cv2

from .._check import value_error
from .drawing import Image

_NAME = "wsfast"
_TRIAL = "import cv2; cv2.namedWindow('wsfast'); cv2.waitKey(1)"


def check_windows() -> None:
    """Try to open a window, in another process: without a screen, Qt ends the one that asks.

    Raises:
        ValueError: none can be opened.
    """
    trial = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, check=False)
    if trial.returncode:
        expected = (
            "left out where OpenCV cannot open a window (opencv-python-headless never can; "
            "opencv-python needs a screen)"
        )
        value_error("localize", "--display", expected, "given")


class Window:
    """A window of OpenCV; shown and closed in one thread."""

    def __init__(self) -> None:
        self._shown: Image | None = None
        self._seen = False

    def show(self, picture: Image) -> bool:
        """Show an RGB picture; False once the user has pressed q or closed the window."""
        if self._shown is None:
            cv2.namedWindow(_NAME, cv2.WINDOW_NORMAL | cv2.WINDOW_GUI_NORMAL)  # no tool bar
            cv2.resizeWindow(_NAME, picture.shape[1], picture.shape[0])
        elif not self._is_open():
            return False
        if picture is not self._shown:
            cv2.imshow(_NAME, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            self._shown = picture
        return cv2.waitKey(1) & 0xFF != ord("q") and self._is_open()

    def close(self) -> None:
        """Take the window away."""
        if self._shown is not None:
            cv2.destroyAllWindows()

    def _is_open(self) -> bool:
        try:
            visible = cv2.getWindowProperty(_NAME, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error:  # what Qt answers once the last window is closed
            return False
        self._seen = self._seen or visible
        return visible or not self._seen  # GTK never says that a window can be seen
