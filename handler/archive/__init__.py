"""Many pictures at once: everything under a prefix, or on a list, made larger under another prefix.

    list -> estimate -> plan (lists of pictures, in the store) -> a job for each list -> manifest

`python -m handler.archive` is the command. The plan is kept in the store, under `archives/<id>/`, and the id follows
from what was asked for; so the same command, repeated, goes on where the first was killed, on any machine. Each list
(a part of the archive) is one job, with the states, leases and hand-overs of every other job, and one container makes
all of its pictures.

No result is made twice and nothing is replaced: a result appears by a write that fails where something is, and carries
in its metadata what it was made from, so that whoever comes second knows it for its own.

Asked for over HTTP it is an `order`, of which `steps` are taken: the same plan, parts and manifest.

`document` is what lies in the store, `listing` finds the pictures, `targets` names the results, `spool` holds a list
that memory need not, `estimation` says what it will take, `planning` writes the parts, `part` is the work on one of
them, `submission` has them all done, and `report` says what came of it.
"""

from handler.archive.part import run_part

__all__ = ["run_part"]
