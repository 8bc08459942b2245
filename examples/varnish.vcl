# Varnish in front of `infercache serve`: it holds what the gateway says a CDN may hold, for as long as it says, and drops it by tag.
#
#     varnishd -a :80 -f varnish.vcl
#     curl -X PURGE -H 'Cache-Tag: product:42' http://varnish/        beside   POST /-/invalidate {"tags": ["product:42"]}
#
# The gateway answers `GET /rank?message=…` for routes in `json_routes`. Anything else passes.

vcl 4.1;

import std;

backend edge {
    .host = "127.0.0.1";
    .port = "8080";
}

acl purgers {
    "127.0.0.1";
    "::1";
}

sub vcl_recv {
    if (req.method == "PURGE") {
        if (client.ip !~ purgers) {
            return (synth(403, "Not for you"));
        }
        if (!req.http.Cache-Tag) {
            return (synth(400, "Which Cache-Tag?"));
        }
        # Tags hold neither spaces nor commas; of what a regular expression knows, only the dot.
        if (std.ban("obj.http.Cache-Tag ~ (^|,)" + regsuball(req.http.Cache-Tag, "[.]", "[.]") + "(,|$)")) {
            return (synth(200, "Purged"));
        }
        return (synth(400, std.ban_error()));
    }
    # What credentials were shown for is held nowhere, which the gateway says too: `Vary`, and `no-store`.
    if (req.method == "GET" || req.method == "HEAD") {
        if (!req.http.Authorization && !req.http.Cookie) {
            return (hash);
        }
    }
    return (pass);
}

sub vcl_backend_response {
    if (bereq.uncacheable) {
        return (deliver);
    }
    if (beresp.status >= 500 && bereq.is_bgfetch) {
        # What is held stays while the gateway fails.
        return (abandon);
    }
    if (beresp.http.CDN-Cache-Control !~ "max-age=[0-9]") {
        set beresp.uncacheable = true;
        set beresp.ttl = 0s;
        return (deliver);
    }
    # RFC 9213. What `Age` says has passed already.
    set beresp.ttl = std.duration(regsub(beresp.http.CDN-Cache-Control, "^.*max-age=([0-9]+).*$", "\1s"), 0s)
        - std.duration(beresp.http.Age + "s", 0s);
    # Varnish has one time for both: served stale while it asks anew, and while the gateway fails. The later word counts.
    set beresp.grace = 0s;
    if (beresp.http.CDN-Cache-Control ~ "stale-while-revalidate=[0-9]") {
        set beresp.grace = std.duration(
            regsub(beresp.http.CDN-Cache-Control, "^.*stale-while-revalidate=([0-9]+).*$", "\1s"), 0s);
    }
    if (beresp.http.CDN-Cache-Control ~ "stale-if-error=[0-9]") {
        set beresp.grace = std.duration(
            regsub(beresp.http.CDN-Cache-Control, "^.*stale-if-error=([0-9]+).*$", "\1s"), 0s);
    }
    return (deliver);
}

sub vcl_deliver {
    unset resp.http.Cache-Tag;
    unset resp.http.Surrogate-Key;
    unset resp.http.CDN-Cache-Control;
}
