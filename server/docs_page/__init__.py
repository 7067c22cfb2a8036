"""The page at `/docs`: Swagger UI from our own files, so that it works without the internet.

`swagger-ui-bundle.js.gz` and `swagger-ui.css.gz` are those of swagger-ui-dist 5.35.0, packed with
`gzip -9n`; their licences are in `NOTICE` and `swagger-ui-bundle.js.LICENSE.txt`. To renew them:
`npm pack swagger-ui-dist`.
"""
