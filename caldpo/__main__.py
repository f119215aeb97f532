"""``python -m caldpo`` is the ``caldpo`` command."""

from caldpo.cli import main

if __name__ == "__main__":
    main()
