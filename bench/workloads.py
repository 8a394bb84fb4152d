"""What the programs of the Debian root file system are given to do."""

from pathlib import Path

_GUEST = Path(__file__).parent / "guest"

PACKAGES = ("python3-minimal", "nodejs", "gcc", "libc6-dev", "luajit", "dash")

_FUNCTION = """\
struct item{n} {{ int key; unsigned weight; double value; struct item{n} *next; }};

static int compare{n}(const void *a, const void *b)
{{
    const struct item{n} *x = a, *y = b;
    return x->key != y->key ? (x->key > y->key) - (x->key < y->key) : (x->value > y->value) - (x->value < y->value);
}}

double work{n}(struct item{n} *items, int count, const char *text)
{{
    unsigned histogram[64] = {{0}};
    double sum = {n}.5;
    for (const char *at = text; *at; at++) {{
        switch (*at) {{
        case 'a': histogram[(*at + {n}) % 64] += 3; break;
        case 'e': histogram[(*at * {n}) % 64] ^= 5; break;
        case ' ': continue;
        default: histogram[*at & 63]++;
        }}
    }}
    qsort(items, (size_t)count, sizeof(*items), compare{n});
    for (int i = 0; i < count; i++) {{
        items[i].weight = items[i].weight * 2654435761u + histogram[i & 63];
        items[i].next = &items[(i * {n} + 1) % count];
        for (int k = 0; k < 8; k++)
            sum += items[i].value * k / (1.0 + items[i].weight % (k + 2u));
        if (items[i].next->key > items[i].key)
            sum -= sqrt(items[i].next->value * {n});
    }}
    return sum + strlen(text);
}}

"""


def c_source(nr_lines: int = 1000) -> str:
    """Returns a C file of that many lines or a few more: structures, loops, a switch, calls and doubles."""
    lines = ["#include <math.h>", "#include <stdlib.h>", "#include <string.h>", ""]
    number = 1
    while len(lines) < nr_lines:
        lines += _FUNCTION.format(n=number).splitlines()
        number += 1
    return "\n".join(lines) + "\n"


def files() -> dict[str, bytes]:
    """Returns what the rows find in /bench."""
    return {
        **{f"bench/{path.name}": path.read_bytes() for path in (_GUEST / "loop.js", _GUEST / "loop.lua")},
        "bench/source.c": c_source().encode(),
    }
