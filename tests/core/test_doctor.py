"""Every check on the real machine, and what each says on machines that lack something."""

from pathlib import Path

import pytest

from recsys_ray.core import doctor
from recsys_ray.core.doctor import Finding

GB = 1024**3
VERSIONS = {"faiss-cpu": "1.15.1", "faiss-gpu": "1.15.1"}


def test_this_machine_is_examined_whole_and_nothing_fails(tmp_path: Path) -> None:
    findings = doctor.check_all(tmp_path / "not" / "there" / "yet")
    assert {"python", "torch", "ray", "faiss", "deepspeed", "memory", "disk", "gpu"} <= {f.name for f in findings}
    assert [finding for finding in findings if finding.status == "fail"] == []
    assert all(finding.advice for finding in findings if finding.status != "ok")


@pytest.mark.parametrize(
    ("finding", "status", "says"),
    [
        (doctor.check_python((3, 10, 4)), "fail", "3.11"),
        (doctor.check_python((3, 12, 0)), "ok", ""),
        (doctor.check_faiss(lambda name: None), "fail", "recsys-ray[cpu]"),
        (doctor.check_faiss(VERSIONS.get), "fail", "pip uninstall"),
        (doctor.check_faiss({"faiss-gpu": "1.15.1"}.get), "ok", ""),
        (doctor.check_weights(lambda name: None), "warn", "make install"),
        (doctor.check_compiler(lambda name: None), "warn", "apt-get install g++"),
        (doctor.check_memory(GB), "fail", "2 GB"),
        (doctor.check_memory(4 * GB), "warn", "6 GB"),
        (doctor.check_shared_memory(64 * 1024**2), "warn", "--shm-size"),
        (doctor.check_shared_memory(path=Path("/no/such/folder")), "ok", ""),
        (doctor.check_disk(Path("/"), GB // 2), "fail", "--storage"),
        (doctor.check_disk(Path("/"), 5 * GB), "warn", "10 GB"),
    ],
)
def test_what_is_missing_is_named_with_what_to_do(finding: Finding, status: str, says: str) -> None:
    assert finding.status == status
    assert says in finding.advice


def test_advice_is_printed_and_only_a_fail_gives_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    fine = [Finding("ray", "ok", "2.60"), Finding("faiss", "warn", "none", "pip install 'recsys-ray[cpu]'")]
    assert doctor.print_checks(fine) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ok", "ray", "2.60"],
        ["warn", "faiss", "none"],
        ["->", "pip", "install", "'recsys-ray[cpu]'"],
    ]
    assert doctor.print_checks([*fine, Finding("disk", "fail", "full", "free some")]) == 1


def test_files_that_a_container_has_read_do_not_count_as_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "memory.max": str(8 * GB),
        "memory.current": str(7 * GB),
        "memory.stat": f"anon {GB}\ninactive_file {6 * GB}\nactive_file 0",
    }.items():
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "meminfo").write_text(f"MemTotal: {64 * GB // 1024} kB\nMemAvailable: {60 * GB // 1024} kB\n")
    monkeypatch.setattr(doctor, "_CGROUP", tmp_path)
    monkeypatch.setattr(doctor, "_MEMINFO", tmp_path / "meminfo")
    assert doctor.check_memory().detail == "7.0 GB free"
    (tmp_path / "memory.stat").unlink()
    assert doctor.check_memory().status == "fail"
