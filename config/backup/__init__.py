"""A whole installation in one file, and back: `manage.py backup`, `manage.py restore`.

The file is a gzipped tar::

    database/…      SQLite: the file as its backup API gives it; PostgreSQL: a COPY of each table
    attachments/…   every file that a row of the database names
    keys.json       the instance keys, sealed under a passphrase (only where one was given)
    manifest.json   what it is, of which version, and a digest of every other member; comes last

Secrets stay sealed in it as they are in the database. Nothing of the event log or the cache goes
in: the database is the record, the rest is made again.

    BackupError     can't be made, or can't be used; a sentence for the operator
"""

from config.backup.archive import BackupError
from config.backup.making import make
from config.backup.restoring import Outcome, restore

__all__ = ["BackupError", "Outcome", "make", "restore"]
