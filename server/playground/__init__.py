"""The playground: a page for chats, images and models, in the browser's own modules. There is no
build step, and nothing is fetched from other sites.

The files in `vendor/` are those of the packages below, without their source maps and packed with
`gzip -9n`; their licences are in `NOTICE`. To renew one: `npm pack NAME`.

| file | package | from | changed |
|---|---|---|---|
| `preact.js` | preact 11.2.0 | `dist/preact.mjs` | |
| `hooks.js` | preact 11.2.0 | `hooks/dist/hooks.mjs` | it imports `./preact.js` |
| `htm.js` | htm 3.1.1 | `dist/htm.mjs` | |
| `idb-keyval.js` | idb-keyval 6.3.0 | `dist/index.js` | |
| `marked.js` | marked 18.2.1 | `lib/marked.esm.js` | |
| `purify.js` | dompurify 3.5.0 | `dist/purify.es.mjs` | |
| `highlight.js` | @highlightjs/cdn-assets 11.12.0 | `es/highlight.min.js` | |
| `temml.js` | temml 0.13.5 | `dist/temml.min.js` | the line `export default temml;` at its end |
"""
