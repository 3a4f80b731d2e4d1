"""What gets installed: wheel and sdist against the tracked files, the version, the documents and what they point to."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import vertebra

ROOT = Path(__file__).parents[1]
NOT_IN_SDIST = {".gitignore", ".ci/run"}
CODE = ("backbones/", "engine/", "kernels/", "tools/", "configs/")
DATA = re.compile(r"model_cards/[^/]+\.(csv|md|yml)|results/[^/]+\.csv")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The paths of this checkout that git tracks, relative to its root."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("compares with what git tracks; this folder is no git checkout (an unpacked sdist is none)")
    done = subprocess.run([git, "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True, text=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def packages(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of the tracked files and the wheel made from that sdist, built without a network."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in tracked:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
    build = [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def setup_version() -> str:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config["metadata"]["version"]


def test_wheel_holds_the_tracked_code_and_data_and_nothing_else(tracked: list[str], packages: Path) -> None:
    (wheel,) = packages.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    held = {name.removeprefix("vertebra/") for name in names if ".dist-info/" not in name}
    wanted = {name for name in tracked if name.endswith(".py") and name.startswith(CODE)}
    wanted |= {name for name in tracked if DATA.fullmatch(name)} | {"__init__.py"}
    assert held == wanted
    assert {name.rpartition("/")[2] for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_sdist_holds_every_tracked_file_so_that_it_can_run_the_tests(tracked: list[str], packages: Path) -> None:
    (sdist,) = packages.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    assert {name for name in names if not name.startswith("vertebra.egg-info/")} - {"PKG-INFO"} == (
        set(tracked) - NOT_IN_SDIST
    )


def test_every_module_of_the_wheel_imports_from_an_empty_folder(packages: Path, tmp_path: Path) -> None:
    (wheel,) = packages.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    files = [path.relative_to(site) for path in (site / "vertebra").rglob("*.py") if "configs" not in path.parts]
    modules = sorted(".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files)
    code = f"""
import importlib
for name in {modules}:
    file = importlib.import_module(name).__file__
    assert file.startswith({str(site)!r}), file
"""
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version_stands_in_setup_cfg_alone(tracked: list[str]) -> None:
    assigned = re.compile(r"""^\s*(__version__|version)\s*=\s*["']?\d+\.\d""", re.MULTILINE)
    texts = [name for name in tracked if name.endswith((".py", ".cfg", ".toml"))]
    assert [name for name in texts if assigned.search((ROOT / name).read_text(encoding="utf-8"))] == ["setup.cfg"]


def test_installed_version_is_the_one_of_setup_cfg() -> None:
    assert vertebra.__version__ == setup_version()


def test_changelog_describes_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", setup_version()]


def anchors(document: Path) -> set[str]:
    """The fragments that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_between_documents_lead_somewhere(tracked: list[str]) -> None:
    link = re.compile(r"""\]\(([^)\s]+)\)|(?:src|href)=["']([^"']+)["']""")
    dead = []
    for document in (ROOT / name for name in tracked if name.endswith(".md")):
        text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in (first or second for first, second in link.findall(text)):
            if re.match(r"[a-z]+:", target):  # another site: no network in tests
                continue
            file, _, fragment = target.partition("#")
            path = document.parent / file if file else document
            if not path.exists() or (fragment and fragment not in anchors(path)):
                dead.append(f"{document.relative_to(ROOT)}: {target}")
    assert not dead


def test_no_file_names_a_package_index_or_a_folder_of_one_machine(tracked: list[str]) -> None:
    host = r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|npmjs\.(?:org|com)|anaconda\.org"
    folder = r"(?<![\w.~}\"'])/(?:home|root|Users|work|opt|mnt)/\w"
    found = []
    for name in tracked:
        text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
        found += [f"{name}: {match.group()}" for match in re.finditer(f"{host}|{folder}", text)]
    assert not found
