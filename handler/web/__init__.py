"""The HTTP interface: `app` puts it together from routers, `guard` stands before them."""
