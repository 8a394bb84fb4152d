"""Messages state the fact and the place; classes say who is to blame."""

from ring3 import errors


def test_hypercall_error_takes_an_errno_alone_or_with_the_call() -> None:
    assert str(errors.HypercallError(22)) == "hypercall: -EINVAL"
    assert str(errors.HypercallError(38, 36, 5)) == "hypercall 36 sub-op 5: -ENOSYS"
    assert str(errors.HypercallError(4000, "domctl")) == "hypercall domctl: -4000"


def test_domain_not_found_is_a_key_error_with_a_readable_message() -> None:
    error = errors.DomainNotFound(7)
    assert isinstance(error, KeyError)
    assert str(error) == "domain 7 does not exist"


def test_config_error_names_file_line_and_key() -> None:
    assert str(errors.ConfigError("bad", file="x.cfg", line=3, key="memory")) == "x.cfg:3: memory: bad"
    assert str(errors.ConfigError("bad", key="memory")) == "memory: bad"
    assert str(errors.ConfigError("bad")) == "bad"
    assert isinstance(errors.ConfigError("bad"), ValueError)


def test_guest_errors_name_the_domain() -> None:
    assert str(errors.XenstoreRequestError(3, "ENOENT", "no node")) == "domain 3: ENOENT: no node"
    assert isinstance(errors.RingError(3, "indices"), errors.GuestError)
    assert str(errors.StreamError(0x10, "PAGE_DATA", "cut")) == "stream offset 0x10, record PAGE_DATA: cut"
    assert str(errors.EngineUnavailable("kvm", "no /dev/kvm")) == "engine kvm is unavailable: no /dev/kvm"
    assert str(errors.BuildError("damaged", file="vmlinuz")) == "vmlinuz: damaged"
