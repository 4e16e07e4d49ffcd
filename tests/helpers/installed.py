"""A virtual environment with the project's wheel and its commands, outside of the checkout."""

import configparser
import os
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Installed:
    """An environment. The wheel's dependencies are those of the Python that runs the tests.

    Attributes:
        bin: the folder of its Python and its commands.
    """

    bin: Path

    @classmethod
    def create(cls, wheel: Path, folder: Path) -> "Installed":
        """Makes the environment as pip does, without a network."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        parser = configparser.ConfigParser()
        parser.read(next(site.glob("*.dist-info")) / "entry_points.txt")
        for name, target in parser["console_scripts"].items():
            module, _, function = target.partition(":")
            script = folder / "bin" / name
            lines = (
                f"#!{folder}/bin/python",
                "import sys",
                f"from {module} import {function}",
                "if __name__ == '__main__':",
                f"    sys.exit({function}())",
            )
            script.write_text("\n".join(lines) + "\n")
            script.chmod(0o755)
        return cls(folder / "bin")

    def run(self, command: list[str] | str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a command of the environment.

        Args:
            command: its words, the first without a folder; or a line as it was printed, for a shell.
            cwd: its working folder.
            path: PATH; "" has the environment's folder.
        """
        environment = {"PATH": path or f"{self.bin}:/usr/bin:/bin", "HOME": os.environ["HOME"]}
        line = command if isinstance(command, str) else [str(self.bin / command[0]), *command[1:]]
        return subprocess.run(
            line, shell=isinstance(line, str), cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
