#!/bin/sh
# Make a picture larger with the service: examples/upscale.sh photo.jpg [scale] gives photo-x2.jpg beside it.
#
#     UPSCALE_URL   of the service; http://127.0.0.1:8000/ unless set
#     UPSCALE_KEY   sent as X-API-Key; none unless set
#     UPSCALE_WAIT  seconds to wait for a job at most; 3600 unless set
#
# Needs curl. Small pictures come with the answer; larger ones, or longer work, go by a job. Ends with 0 when the result
# is there, 1 with a message when the service refused or the job failed, 2 on wrong use.
set -eu
photo=${1:-} scale=${2:-2}
[ -f "$photo" ] || { echo "usage: $0 photo.jpg [scale]" >&2; exit 2; }
url=${UPSCALE_URL:-http://127.0.0.1:8000/}
url=${url%/}/
end=$(($(date +%s) + ${UPSCALE_WAIT:-3600}))
result=${photo%.*}-x$scale.${photo##*.}
[ ! -e "$result" ] || { echo "$result is there already: move it away first" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# call METHOD PATH [curl's options]: the body in $work/body, the headers in $work/head, the status in $status. Asked to
# wait (429, 503), it waits and asks again.
call() {
    method=$1 path=$2
    shift 2
    while :; do
        status=$(curl --silent --show-error --request "$method" --dump-header "$work/head" --output "$work/body" \
            --write-out '%{http_code}' ${UPSCALE_KEY:+--header "X-API-Key: $UPSCALE_KEY"} "$@" "$url$path") ||
            { echo "$url does not answer" >&2; exit 1; }
        case $status in
        429 | 503) ;;
        *) return ;;
        esac
        wait=$(header retry-after)
        pause "${wait:-5}"
    done
}

header() { tr -d '\r' <"$work/head" | awk -F': ' -v name="$1" 'tolower($1) == name {print $2}' | tail -n 1; }

# A text at the top of the JSON object in $work/body, which the service writes on one line; gateways may put blanks in.
text() { sed -nE "s/^\{?.*[{,] *\"$1\" *: *\"(([^\"\\]|\\\\.)*)\".*/\1/p" "$work/body" | head -n 1; }

refused() { echo "refused with $status: $(text detail)$(text message)" >&2; exit 1; }

pause() {
    [ "$(date +%s)" -lt "$end" ] || { echo "not done in time: ask again with $url""jobs/${id:-}" >&2; exit 1; }
    sleep "$1"
}

# What a response may carry both ways goes directly; API Gateway ends at about 4 MB of request.
if [ "$(wc -c <"$photo")" -le 4000000 ]; then
    call POST "upscale?scale=$scale" --form "file=@\"$photo\""
    case $status in
    200) mv "$work/body" "$result"; echo "$result"; exit 0 ;;
    303) curl --silent --show-error --fail --output "$work/result" "$(header location)"
         mv "$work/result" "$result"; echo "$result"; exit 0 ;;
    202) id=$(header location); id=${id##*/} ;;
    413) ;; # as a job, then
    *) refused ;;
    esac
fi

if [ -z "${id:-}" ]; then
    name=$(basename "$photo" | tr -d '"\\')
    call POST jobs --header 'Content-Type: application/json' --data \
        "{\"filename\": \"$name\", \"content_type\": \"application/octet-stream\", \"options\": {\"scale\": $scale}}"
    [ "$status" = 201 ] || refused
    id=$(header location)
    id=${id##*/}
    # The form's fields, as curl's options: {"a": "b", ...} becomes lines form-string = "a=b".
    fields=$(sed -E 's/.*"fields" *: *\{([^}]*)\}.*/\1/' "$work/body")
    printf '%s' "$fields" | sed -E 's/" *, *"/"\n"/g' |
        sed -E 's/^ *"([^"]*)" *: *"(.*)" *$/form-string = "\1=\2"/' >"$work/fields"
    to=$(sed -E 's/.*"upload" *: *\{"url" *: *"([^"]*)".*/\1/' "$work/body")
    # Straight to S3, without the key: the fields are the permission, and the file comes last.
    curl --silent --show-error --fail --output "$work/sent" --config "$work/fields" --form "file=@\"$photo\"" "$to" ||
        { echo "the file was not taken: $(cat "$work/sent")" >&2; exit 1; }
fi

while :; do
    call GET "jobs/$id"
    [ "$status" = 200 ] || refused
    state=$(sed -nE 's/.*"state" *: *"(awaiting_upload|queued|running|succeeded|failed|cancelled)".*/\1/p' "$work/body")
    case $state in
    succeeded) break ;;
    failed | cancelled) echo "the job has $state: $(sed -E 's/.*"error" *: *(\{[^}]*\}|null).*/\1/' "$work/body")" >&2; exit 1 ;;
    esac
    pause 2
done
call GET "jobs/$id/result"
[ "$status" = 307 ] || refused
curl --silent --show-error --fail --output "$work/result" "$(header location)"
mv "$work/result" "$result"
echo "$result"
