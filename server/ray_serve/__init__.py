"""N servers behind one address: the server's app as a deployment of Ray Serve.

`docs/decisions/040-ray.md` says what is ours and what is Ray's. Only `application.py` and
`router.py` import Ray, which is an extra.
"""
