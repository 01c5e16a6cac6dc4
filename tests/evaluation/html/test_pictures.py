"""The photographs of a page, which must stay small."""

from posefoundry.evaluation.html import pictures


def test_photographs_become_smaller_until_they_fit_and_the_last_are_left_out(data):
    paths = dict(enumerate(sorted(data["images"].iterdir())))
    whole = pictures.load_photos(paths)
    size = sum(len(photo.uri) for photo in whole.values())
    smaller = pictures.load_photos(paths, size - 1)
    assert sum(len(photo.uri) for photo in smaller.values()) < size and all(p.uri for p in smaller.values())
    assert [smaller[0].width, smaller[0].height] == [whole[0].width, whole[0].height], (
        "what is drawn on it stays in place"
    )
    few = pictures.load_photos(paths, 60_000)
    shown = [bool(photo.uri) for photo in few.values()]
    assert shown[0] and not shown[-1] and shown == sorted(shown, reverse=True)
    assert sum(len(photo.uri) for photo in few.values()) <= 60_000
    assert "keep this page small" in few[5].fault
