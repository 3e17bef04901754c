"""`make wheel`: builds the wheel into `dist/` and tries it as a user gets it, in a clean virtual environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from tests.support.checkout import DATA, ROOT

FIXTURE = DATA / "recordings" / "a_simple.export.json"
WANTED = {
    "app/sources/opencode/plugin/helicone.js",
    "app/migrations/0001_initial.sql",
    "app/__main__.py",
    "app/pages/templates/frame.html",
    "app/pages/static/page.css",
    "app/receiver/templates/receiver_session.html",
    "app/web/templates/overview.html",
}


def build(folder: Path, source: Path = ROOT) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def look_inside(wheel: Path) -> None:
    """Raises SystemExit when something is missing, or lies where other packages' things lie."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    if missing := WANTED - names:
        sys.exit(f"not in the wheel: {', '.join(sorted(missing))}")
    top = {name.split("/", 1)[0] for name in names}
    if strangers := {name for name in top if name != "app" and not name.endswith(".dist-info")}:
        sys.exit(f"at the top of site-packages: {', '.join(sorted(strangers))}")


def install(wheel: Path, folder: Path) -> Path:
    """Into a new environment, with the locked versions; the folder of its programs."""
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    pins = re.findall(r"^[\w.-]+==\S+(?: ; [^\\\n]*)?", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE)
    (folder / "constraints.txt").write_text("\n".join(pin.rstrip(" \\") for pin in pins), "utf-8")
    arguments = ["install", "--quiet", "--disable-pip-version-check", "-c", str(folder / "constraints.txt"), str(wheel)]
    subprocess.run([programs / "python", "-m", "pip", *arguments], check=True)
    return programs


def add_extra(programs: Path, wheel: Path, folder: Path, extra: str) -> None:
    """What somebody types who wants it later."""
    arguments = ["install", "--quiet", "--disable-pip-version-check", "-c", str(folder / "constraints.txt")]
    subprocess.run([programs / "python", "-m", "pip", *arguments, f"{wheel}[{extra}]"], check=True)


def use(programs: Path, wheel: Path, folder: Path) -> None:
    """The first minutes of a user, in a folder that is not ours."""
    environ = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(folder / "spool"),
    }
    (folder / "home").mkdir()

    def run(*arguments: str, code: int = 0) -> str:
        command = [str(programs / "opencode-helicone"), *arguments]
        done = subprocess.run(command, env=environ, cwd=folder / "home", capture_output=True, text=True, check=False)
        if done.returncode != code:
            sys.exit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    sys.stdout.write(run("--version"))
    run("migrate")
    run("import", str(FIXTURE))
    jobs = json.loads(run("status", "--json"))["jobs"]
    if jobs["pending"] != 2:
        sys.exit(f"after an import the status says {jobs}")
    run("metrics", code=2)
    add_extra(programs, wheel, folder, "web")
    if "opencode_helicone_jobs{" not in run("metrics"):
        sys.exit("with its extra, `metrics` tells of no jobs")
    run("install-plugin", "--global")
    run("uninstall-plugin", "--global")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="opencode-helicone-wheel-") as name:
        folder = Path(name)
        say("building the wheel ...")
        wheel = build(folder / "dist")
        look_inside(wheel)
        say(f"{wheel.name}: installing it with the locked versions into a new environment ...")
        programs = install(wheel, folder)
        say("using it ...")
        use(programs, wheel, folder)
        (ROOT / "dist").mkdir(exist_ok=True)
        shutil.copy2(wheel, ROOT / "dist" / wheel.name)
        say(f"dist/{wheel.name}: installed, migrated, imported")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
