import pytest

from deploykit import errors


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("DeploykitError", 70),
        ("UsageError", 2),
        ("ModelError", 3),
        ("UnsupportedModel", 3),
        ("PassFailed", 3),
        ("RuntimeUnavailable", 4),
        ("GateFailed", 1),
    ],
)
def test_exit_codes_are_part_of_the_interface(name, code):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.DeploykitError)
    assert kind.exit_code == code


def test_a_failed_pass_is_named_with_what_ran_before_it():
    error = errors.PassFailed("align-channels", "no group", done=("tidy", "remove-channels"))
    assert str(error) == "pass 'align-channels' failed (after tidy, remove-channels): no group"
    assert str(errors.PassFailed("tidy", "no graph")) == "pass 'tidy' failed: no graph"
