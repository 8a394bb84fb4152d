"""Programs out of Debian's packages: the libraries that an ELF file needs are found, and nothing else is packed."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from ring3.dev import debian, needed
from ring3.dev.initramfs import ArtefactError


def compile_c(path: Path, source: str, *flags: str) -> bytes:
    path.with_suffix(".c").write_text(source)
    done = subprocess.run(["gcc", "-o", path, path.with_suffix(".c"), *flags], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no compiler: {done.stderr}")
    return path.read_bytes()


def test_needed_libraries_are_read_in_order(tmp_path: Path) -> None:
    compile_c(tmp_path / "libfirst.so", "int first;", "-shared", "-fPIC")
    main = "extern int first; double sqrt(double); int main(int n, char **v) { (void)v; return first + (int)sqrt(n); }"
    libraries = ("-Wl,--no-as-needed", f"-L{tmp_path}", "-lfirst", "-lm")
    assert needed.libraries(compile_c(tmp_path / "main", main, *libraries))[:2] == ["libfirst.so", "libm.so.6"]


def test_a_static_program_needs_none(tmp_path: Path) -> None:
    assert needed.libraries(compile_c(tmp_path / "main", "int main(void) { return 0; }", "-static")) == []


def test_what_is_no_elf_file_is_refused() -> None:
    with pytest.raises(ArtefactError):
        needed.libraries(b"#!/bin/sh\n")


def test_libraries_come_from_the_packages_that_are_depended_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = compile_c(
        tmp_path / "libfirst.so", "int first;", "-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libfirst.so"
    )
    flags = ("-nostartfiles", "-nodefaultlibs", f"-L{tmp_path}", "-lfirst", "-Wl,--no-as-needed")
    program = compile_c(tmp_path / "main", "extern int first; int _start(void) { return first; }", *flags)
    packages = {"tool": {"usr/bin/tool": program}, "libfirst": {"usr/lib/x86_64-linux-gnu/libfirst.so": library}}
    monkeypatch.setattr(debian, "has_apt", lambda: True)
    monkeypatch.setattr(debian, "download", lambda directory, package: directory / package)
    monkeypatch.setattr(debian, "depends", lambda package: ["libfirst"] if package == "tool" else [])
    monkeypatch.setattr(debian, "members", lambda package: iter(packages[package.name].items()))
    files = debian.program(tmp_path, "tool", "usr/bin/tool")
    assert files == {"usr/bin/tool": program, "lib/x86_64-linux-gnu/libfirst.so": library}
    with pytest.raises(ArtefactError, match="usr/bin/other"):
        debian.program(tmp_path, "tool", "usr/bin/other")
    monkeypatch.setattr(debian, "depends", lambda _: [])
    with pytest.raises(ArtefactError, match=r"libfirst\.so"):
        debian.program(tmp_path, "tool", "usr/bin/tool")


def test_links_within_a_package_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("./lib/libx.so.1.0")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"data"))
        for name, target in (("./lib/libx.so.1", "libx.so.1.0"), ("./lib/out", "/etc/passwd")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)

    def run(*_arguments: object, **_options: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess([], 0, stdout=archive.getvalue())

    monkeypatch.setattr(debian.subprocess, "run", run)
    assert dict(debian.members(tmp_path / "x.deb")) == {"lib/libx.so.1.0": b"data", "lib/libx.so.1": b"data"}
