// Swagger UI, with the description's server wherever this page was found: under a prefix, behind a stage.
const spec = await (await fetch("openapi.json")).json();
spec.servers ??= [{ url: new URL(".", location.href).href.replace(/\/$/, "") }];
SwaggerUIBundle({ spec, dom_id: "#docs", deepLinking: true, validatorUrl: null });
