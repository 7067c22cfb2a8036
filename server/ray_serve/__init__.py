"""N servers behind one address: the server's app as a deployment of Ray Serve.

`docs/decisions/040-ray.md` says which parts are ours and which are Ray's. Only `application.py` and
`router.py` import Ray, which is an extra.
"""
