// ReDoc, with the description's server wherever this page was found: under a prefix, behind a stage.
const spec = await (await fetch("openapi.json")).json();
spec.servers ??= [{ url: new URL(".", location.href).href.replace(/\/$/, "") }];
Redoc.init(spec, { disableSearch: true, hideDownloadButton: true, nativeScrollbars: true }, document.getElementById("docs"));
