import os

from hypothesis import example, given
from hypothesis import strategies as st

from btcompress.text import listed, printable, shortened, valid_unicode

#: Whatever Python may hold as text, surrogates included.
any_text = st.text(st.characters(codec=None, exclude_categories=()))


@given(any_text)
@example("\x1b]0;title\x07\x9b31m")
@example("\u202egnp.exe\u2066\u200f")
@example("a\r\nb\u2028c\u2029d\x85\ttab")
@example("\ud800\udc00\udcff\ud800")
def test_printable_text_is_one_line_of_visible_characters_and_stays_as_it_is(text):
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert printable(f"x{text}y") == f"x{shown}y"


def test_escapes_say_which_characters_were_there_and_leave_all_others():
    assert printable("Größe 重み 🙂 x\x1b[31m\n\u202e") == r"Größe 重み 🙂 x\x1b[31m\n\u202e"


@given(any_text)
@example("\udcc3\udca9")
@example("\udcc3\ud800\udca9")
def test_valid_unicode_can_be_encoded_and_changes_only_what_could_not_be(text):
    valid = valid_unicode(text)
    assert valid.encode().decode() == valid
    assert valid_unicode(valid) == valid
    if not any("\ud800" <= each <= "\udfff" for each in text):
        assert valid == text


@given(st.binary())
def test_names_of_files_keep_what_is_utf_8_and_escape_the_bytes_that_are_not(name):
    assert valid_unicode(name.decode("utf-8", "surrogateescape")) == name.decode("utf-8", "backslashreplace")
    assert valid_unicode(os.fsdecode(b"m\xff.pt")) == r"m\xff.pt"


@given(st.text(max_size=300), st.integers(60, 250))
def test_shortened_text_keeps_both_ends_and_says_how_much_is_left_out(text, limit):
    short = shortened(text, limit)
    assert len(short) <= limit or len(text) <= limit
    if len(text) <= limit:
        assert short == text
        return
    before, _, rest = short.partition(" ... (")
    count, _, after = rest.partition(" characters left out) ... ")
    assert int(count.replace(",", "")) == len(text) - len(before) - len(after)
    assert text.startswith(before)
    assert text.endswith(after)
    assert abs(len(before) - len(after)) <= 1


def test_of_very_many_names_the_first_are_listed_and_the_others_counted():
    names = [f"n{index}" for index in range(1234)]
    assert listed(names[:10]) == ", ".join(names[:10])
    assert listed(names[:11]) == ", ".join(names[:10]) + " and 1 more"
    assert listed(names, 2) == "n0, n1 and 1,232 more"
    assert listed([]) == "none"
