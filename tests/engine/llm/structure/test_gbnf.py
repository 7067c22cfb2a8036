"""llama.cpp's grammars take the texts that they describe, and no others."""

from itertools import product

import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from engine.llm.structure.gbnf_lark import lark_of_gbnf
from engine.llm.structure.matcher import LIMITS
from engine.llm.structure.token_names import TokenNames
from tests.helpers.llm import byte_tokens

END, THINK, THOUGHT, WORD, NO_TOKEN = range(256, 261)
LONGEST = 4
"""Characters of the texts that random grammars are asked about."""


class Bytes(byte_tokens.Bytes):
    """Each byte is a token, and there are a few more."""

    special_token_ids = (END, THINK, THOUGHT)
    tokens = (*byte_tokens.Bytes.tokens, b"<t>", b"</t>", b"<b>", b"")


TOKENS = LLTokenizer(TokenizerWrapper(Bytes()))
NAMES = TokenNames(
    {"<t>": THINK, "</t>": THOUGHT},
    lambda text: [WORD] if text == "<b>" else [*text.encode()],
    num_tokens=len(Bytes.tokens),
    never=frozenset({END, NO_TOKEN}),
)


def matcher(grammar):
    made = LLMatcher(TOKENS, lark_of_gbnf(grammar, NAMES), log_level=0, limits=LIMITS)
    assert not made.is_error(), (grammar, made.get_error())
    return made


def takes(start, text):
    """Whether the text may be written byte by byte and end there."""
    return takes_tokens(start, text.encode())


def takes_tokens(start, tokens):
    at = start.deep_copy()
    tokens = [*tokens, END]
    return at.validate_tokens(tokens) == len(tokens)


ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize(
    ("grammar", "taken", "not_taken"),
    [
        # Both of llama.cpp's own examples, as they stand there.
        (ARITHMETIC, ["a=1\n", "x+1=  2\n", "(a*3)-b = c\n\nd=e\n"], ["a=1", "=1\n", "(a=1\n"]),
        (
            JSON,
            [
                "{}",
                '{"a": 1}',
                '{"a":"\\"\\n","c":[1,-2.5e3,true,null,{}]}',
                '{"a":\n  "\\u00e9"\n}',
            ],
            ['{"a" 1}', '{"a":tru}', '{"a":"\n"}', "[]", '{"a":"\\u00e"}'],
        ),
        # What may go on is not read as far as it can be.
        ('root ::= [a-z]+ "ing"', ["singing", "inning"], ["ing", "sin"]),
        ('root ::= w "ing"\nw ::= [a-z]*', ["sing", "ing", "singing"], ["sin"]),
        ('root ::= ("ab" | "a") "bc" s\ns ::= "(" s ")" | ""', ["abc", "abbc(())"], ["abc("]),
        # Repetitions of repetitions.
        ('root ::= ("a"*)* "b"', ["b", "aab"], ["a"]),
        ('root ::= ("a"+)? (("b"{2}){2,3})', ["bbbb", "aabbbbbb"], ["bb", "bbbbb"]),
        # Characters.
        (r'root ::= "é\u00e9\u3041\U0001F600\x41" [\u00e9]', ["ééぁ😀Aé"], ["éé"]),
        (r"root ::= [\]\[a&&b^.-]+ . [^\n]", ["[]&^.-\na"], ["[\n\n", "c.."]),
        (r"root ::= [^a-cé]", ["d", "\n", "😀"], ["b", "é"]),
        # Layout, comments and names.
        (
            'root ::= # what it is\n  "a"\n  | b-c b_c\nb-c ::= "x"\r\nb_c ::= "y"',
            ["a", "xy"],
            ["x"],
        ),
        ("root ::= start R\nstart ::= [0-9]\nR ::= r\nr ::= start", ["12"], ["1"]),
    ],
)
def test_what_a_grammar_takes(grammar, taken, not_taken):
    start = matcher(grammar)
    assert [text for text in taken if not takes(start, text)] == []
    assert [text for text in not_taken if takes(start, text)] == []


@pytest.mark.parametrize(
    ("grammar", "taken", "not_taken"),
    [
        # llama.cpp's own example: reasoning up to its end, and then what is asked for.
        (
            "root ::= <t> inner </t> answer\ninner ::= !</t>*\nanswer ::= [a-z]+",
            [[THINK, THOUGHT, 97], [THINK, *b"x<", WORD, THINK, THOUGHT, *b"yes"]],
            [[THINK, THOUGHT], [THOUGHT, 97], [*b"<t>", THOUGHT, 97], [THINK, END, THOUGHT, 97]],
        ),
        (
            f'root ::= "a" <[{WORD}]>{{2}} | "b" !<[{THINK}]> s\ns ::= "(" s ")" | ""',
            [[97, WORD, WORD], [98, THOUGHT], [98, WORD, *b"(())"], [98, 255]],
            [[97, WORD], [97, *b"<b><b>"], [98, THINK], [98, NO_TOKEN], [98, WORD, *b"("]],
        ),
        (
            'root ::= x <t>* [a-z]* "ing" </t> | y\nx ::= "a"? [b]\ny ::= <b> x ("c" | <t>) [c]*',
            [[*b"ab", THINK, *b"singing", THOUGHT], [*b"bing", THOUGHT], [WORD, *b"bccc"]],
            [[*b"ab", THINK, THOUGHT], [*b"bin", THOUGHT], [WORD, *b"bxc"]],
        ),
        ('root ::= [a-z]* "g" <b> [0-9]*', [[*b"singg", WORD, *b"12"], [103, WORD]], [[WORD]]),
    ],
)
def test_tokens_that_a_grammar_names(grammar, taken, not_taken):
    start = matcher(grammar)
    assert [tokens for tokens in taken if not takes_tokens(start, tokens)] == []
    assert [tokens for tokens in not_taken if takes_tokens(start, tokens)] == []


def random_rule(rng, depth=0):
    """Make a rule: its text, and a function that gives its texts of at most LONGEST characters."""
    match rng.choice("lc" if depth > 2 else "lcsss||*r"):
        case "l":
            literal = "".join(rng.choices("ab", k=rng.randrange(3)))
            return f'"{literal}"', lambda known: {literal}
        case "c":
            letters = rng.sample("abc", 2)
            return f"[{''.join(letters)}]", lambda known: set(letters)
        case "r":
            return "s", lambda known: known
        case "s":
            (left, some), (right, others) = (random_rule(rng, depth + 1) for _ in range(2))
            return f"{left} {right}", lambda known: joined(some(known), others(known))
        case "|":
            (left, some), (right, others) = (random_rule(rng, depth + 1) for _ in range(2))
            return f"({left} | {right})", lambda known: some(known) | others(known)
    inner, some = random_rule(rng, depth + 1)
    sign, least, most = rng.choice(
        [("*", 0, LONGEST), ("+", 1, LONGEST), ("?", 0, 1), ("{2}", 2, 2)]
    )
    return f"({inner}){sign}", lambda known: repeated(some(known), least, most)


def joined(some, others):
    return {one + other for one in some for other in others if len(one + other) <= LONGEST}


def repeated(some, least, most):
    found, last = set(), {""}
    for times in range(most + 1):
        found |= last if times >= least else set()
        last = joined(last, some)
    return found


def test_random_grammars_take_their_texts_and_no_others(rng):
    letters = ["".join(one) for size in range(LONGEST + 1) for one in product("abc", repeat=size)]
    num_asked = 0
    while num_asked < 60:
        body, texts_with = random_rule(rng)
        known: set[str] = set()
        while (more := texts_with(known)) - known:
            known |= more
        if not known:
            continue  # no text at all
        num_asked += 1
        start = matcher(f"root ::= s\ns ::= {body}")
        assert {text for text in letters if takes(start, text)} == known, body


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ('x ::= "a"', "the rule root is missing"),
        ("root ::= x", "the rule x is used, but not defined"),
        ('root = "a"', "::= is missing in line 1"),
        ('root ::= "a', "a closing quote or bracket is missing in line 1"),
        ('root ::= ("a"', r"\) is missing in line 1"),
        ('root ::= "a")', "unexpected '\\)' in line 1"),
        ("root ::=\n  [z-a]", "comes before its first in line 2"),
        ("root ::= []", "a character class is empty"),
        (r'root ::= "\q"', "is not a valid escape"),
        (r'root ::= "\ud800"', "is not a valid escape"),
        ('root ::= "a"{2,1}', "is not a valid number of repetitions"),
        ("root ::= <think>", "<think> is not a token of this model"),
        ("root ::= <[261]>", "ids end at 260"),
        ("root ::= !<[256]>", "ends a text"),
        ("root ::= <[260]>", "or has no text"),
        ("root ::= !x", "a token must be written"),
    ],
)
def test_what_is_no_grammar_is_refused(grammar, said):
    with pytest.raises(ValueError, match=said):
        lark_of_gbnf(grammar, NAMES)
