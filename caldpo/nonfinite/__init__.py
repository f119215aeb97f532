"""Numbers that go bad: found, named, kept for replay, and refused where they are certain."""
