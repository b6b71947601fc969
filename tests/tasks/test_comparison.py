"""The table of answers: what scores, and what is the same, in every style."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optima.recipe.schema import DataSection
from optima.tasks import METRICS, TASKS
from optima.tasks.answers import is_placeholder
from optima.tasks.equivalence import equivalence
from optima.tasks.judging import Judge, JudgeError
from optima.tasks.loading import Split, load_problems
from optima.tasks.metrics import EXACT_MATCH, F1, MATH
from optima.tasks.task import Metric, Task

METALS = ("wood", "iron", "water", "air")
DAYS = ("Planetary days will become longer.", "Planetary days will become shorter.", "No change.")
ORDERS = ("x > y", "x < y", "x = y")
PERCENTAGES = ("10%", "10", "9", "1")
SIGNED = ("-5", "5", "+2", "-2")
LETTERS = ("B", "C", "D", "K")
SPEEDS = ("2c", "c", "0.8c", "0.5c")
GENES = ("WW or ww", "WW or Ww", "WW only", "Ww only")
ARTICLES = ("A warmer day", "A cooler day", "a mouse", "I and Ca")
SPEEDS_NORTH = ("40", "40 m north", "40 m/s", "30 m/s")
COMBINED = ("wood", "iron", "both A and B", "none of the above")
EQUAL = ("12", "-4", "4", "12")
FORMULAS = (r"$\frac{1}{2}$", r"$\frac{1}{4}$", "2", "4")
VERDICTS = ("Yes, because it is hot.", "Yes, because it is cold.", "No, because it is hot.")
MONEY = ("$1", "$1,650", "$16,500", "$20")
ALL_OR_NONE = ("all of the above", "none of the above", "both A and B", "iron")
TRENDS = ("increase", "decrease", "increase then decrease", "no change")
HUNDREDS = ("12", "1.2", "120", "0.12")
HALVES = ("1/2", "2/1", "1:2", "-1/2")
UNITS = ("5 m/s", "5 km/s", "50 m/s", "5")
TRUTHS = ("True, True", "True, False", "False, True", "False, False")
GASES = ("H2O", "CO2", "O2", "H2")
POWERS = ("x^2", "x^3", "-x^2", "2x")
ROMAN = ("I only", "II only", "I and II", "I, II, and III")
THINGS = ("A cell", "An atom", "a molecule", "The organ")
DOUBTS = ("Yes", "No", "Maybe", "Yes, because it is hot.")
NEGATED = ("not iron", "iron", "is iron", "iron not")
SKY = ("the sun", "the moon", "the sun and the moon", "neither the sun nor the moon")
TIMES = ("10:30", "10.30", "1030", "22:30")
FIVES = ("$5", "5%", "-5", "5°")
PETS = ("cat", "dog", "the cat's dog", "cat dog")
BOUNDS = ("a > b", "a < b", "a ≥ b", "a ≤ b")
DISTANCES = ("1,000 km", "2,000 km", "1,000 m", "10,000 km")
LINES = ("y = 2x + 3", "y = 2x - 3", "y = 3x + 2", "2x + 3 = 0")
TENS = ("5", "10", "15", "20")
PRICES = ("$5.00", "$50.0", "$0.50", "500")
HOURS = ("3:00 pm", "3:00 am", "3:30")
FORMS = ("H2O", "H2O2", "Na+", "Na", "10^-3")
MIXED = ("11/2", "1 1/2", "1/2", "2")

# (choices, gold, answers that are it, answers that are not)
CHOICES: tuple[tuple[tuple[str, ...], str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        METALS,
        "B",
        (
            *("B", "b", "(B)", "(b)", "B.", "B)", "B:", "[B]", " B ", "**B**", "*B*", "`B`", '"B"'),
            *("Option B", "option b", "Choice B", "Answer: B", "The answer is B", "$B$"),
            *(
                r"\boxed{B}",
                r"\text{B}",
                r"\boxed{\text{B}}",
                r"\textbf{(B)}",
                "the answer is (B).",
            ),
            *("B. iron", "b. iron", "(B) iron", "(b) iron", "B) iron", "B: iron", "B - iron"),
            *("B iron", "B, iron", "B = iron", "**B. iron**", "**B**. iron", "B. **iron**"),
            *("Option B: iron", "iron (B)", "B (iron)", "iron", "Iron.", "IRON", "the iron"),
            *("The answer is iron", "B. the iron", "B because it rusts", "B. B", "B. Iron rusts"),
            *("B, because wood is no metal", "The correct choice is B. iron", r"\boxed{iron}"),
        ),
        (
            *("A", "C", "E", "X", "2", "", "  ", "B) or C)", "B or C", "B, C", "B and C", "B/C"),
            *("BC", "A B", "B. wood", "b. wood", "A. iron", "A iron", "(A) iron", "B (wood)"),
            *("not B", "maybe B", "B?", "iron?", "B. iron?", "probably iron", "B. not iron"),
            *("iron or wood", "iron and air", "B. iron or wood", "B. iron, C. water"),
            *("B. iron and C", "B. copper", "copper", "Because", "either B or C", "no idea", "ir"),
            *("-B", "iron wood", "B. iron, not wood", "A. wood", "wood", "B but maybe C"),
        ),
    ),
    (
        DAYS,
        "B",
        (
            *("B", "planetary days will become shorter", "B. Planetary days will become shorter."),
            *("B. Planetary days", "B. planetary days will be shorter", "b) planetary days will"),
        ),
        (
            *("A", "shorter", "planetary days", "B. Planetary days will become longer."),
            *("B. planetary nights", "C", "A. Planetary days will become shorter", "B. No change"),
        ),
    ),
    (ORDERS, "A", ("A", "x > y", "A. x > y", "X > Y"), ("x < y", "A. x < y", "x y", "B", "x = y")),
    (PERCENTAGES, "B", ("B", "10", "B. 10"), ("10%", "A", "B. 10%", "9", "100")),
    (SIGNED, "A", ("A", "-5", "A. -5", "\u22125", "A) $-5$"), ("5", "B", "A. 5", "+5", "2")),
    (LETTERS, "B", ("B", "B. C", "(b)"), ("C", "A", "D", "K", "B. D")),
    (LETTERS, "D", ("D", "K", "D. K"), ("B", "D. B")),
    (SPEEDS, "B", ("B", "c", "B. c"), ("C", "2c", "C. 0.8c", "B. 2c")),
    (SPEEDS, "C", ("C", "0.8c", "C. 0.8c"), ("c", "C. c", "B")),
    (GENES, "B", ("B", "WW or Ww", "B. WW or Ww", "B. ww or ww"), ("B. WW or ww", "ww or ww", "D")),
    (GENES, "D", ("Ww only", "d) Ww only"), ("WW only", "D. WW only")),
    (ARTICLES, "B", ("A cooler day", "A cooler day (B)", "a cooler day"), ("A", "A. cooler day")),
    (ARTICLES, "D", ("I and Ca", "I and Ca (D)", "D. I and Ca"), ("I", "Ca")),
    (SPEEDS_NORTH, "B", ("40 m north", "40 m north (B)", "B. 40 m north"), ("40", "40 m", "A")),
    (SPEEDS_NORTH, "D", ("30", "30 m/s", "D. 30"), ("30 km/h", "40 m/s")),
    (COMBINED, "C", ("C", "both A and B", "C. both A and B"), ("A and B", "A", "B", "D")),
    (COMBINED, "D", ("D", "None of the above.", "D) none of the above"), ("none", "C")),
    (EQUAL, "D", ("D", "D. 12"), ("12", "A", "A. 12", "-4")),
    (FORMULAS, "A", ("A", r"\frac{1}{2}", "1/2", r"A. $\dfrac{1}{2}$", "0.5"), ("1/4", "2", "C")),
    (VERDICTS, "A", ("A. Yes", "Yes, because it is hot", "A"), ("Yes", "A. No", "No", "B. Yes")),
    (MONEY, "B", ("B", "$1,650", "1650", "1,650 dollars", "B. $1,650"), ("$16,500", "1", "165")),
    (
        METALS,
        "B",
        (
            *("Ｂ", "（B）", "B。", "the letter B", "Letter B", "I choose B", "I pick B", "It's B"),
            *(
                "I'd go with B",
                "It is B",
                "B is correct",
                "B is right",
                "B is the answer",
                "<b>B</b>",
            ),
            *("The answer is **B**.", "The correct choice is **iron**", "So, **the answer is B**."),
            *("Option B is correct", "[B. iron]", "(B. iron)", "# B", "**Answer:** B", "Thus B."),
            *("Therefore, B", "The answer is therefore B", "iron, because it conducts", "B → iron"),
            *(
                "**B** iron",
                "*B* iron",
                "iron is the right answer",
                "B | iron",
                "<strong>iron</strong>",
                "***B***",
                "“B”",
            ),
        ),
        (
            *("B ≠ iron", "B. iron > wood", "¬B", "~B", "B'", "A > B", "A & B", "A-D"),
            *("B → C", "B | C", "not B is correct", "neither B nor C is correct", "B is wrong"),
            *(
                "I choose B or C",
                "I do not choose B",
                "all but B",
                "everything but iron",
                "the last",
            ),
            *("copper, because it is iron", "wood, because iron rusts", "B is correct?", "В", "ß"),
            *("B wasn't it", "B. iron, it wasn't", "I doubt B", "hardly B", "**B** wood"),
            *("all of the above", "none", "any of B", "A. wood B. iron", "B\nC", "E. iron"),
        ),
    ),
    (
        METALS,
        "B",
        (
            *("**B**)", "**B)** iron", "(**B**) iron", "*(B)* iron", "`B`: iron"),
            *("<b>B</b>. iron", r"\textbf{B} iron", r"\boxed{B}. iron", "B!", "(B.) iron"),
            *("B- iron", "Option **B**", "Ans: B", "Ans. B", "The answer would be B"),
            *("The answer must be B", "I'd choose B", "I will go with B", "Let's go with B"),
            *("We choose B", "It must be B", "This is B", "iron (Option B)", "iron, B"),
            *("iron - B", "iron, which is option B", "B; iron", "B => iron", "B -> iron"),
            *("B\u200b", "\u24b7", "\U0001d401", "B \u2705", "\u2714 B", "\u2192 B"),
            *("\u2022 B", "**Answer**: **B**", "_Answer_: B", "- B. iron", "\u00abB\u00bb"),
        ),
        (
            *("I think B", "B. iron is false", "~~B~~ C", "**B** or **C**", "**B** **C**"),
            *("**not** B", "B => C", "iron, C", "iron - C", "wood (Option B)"),
            *("iron, which is option C", "\u274c B", r"\textbf{B} wood", "- B. wood"),
            *("<b>B</b>. wood", "B it is not", "I'd choose B or C", "This is not B"),
            *("It must not be B", "We choose neither", "iron = wood", "B; wood", "B*C"),
        ),
    ),
    (ALL_OR_NONE, "A", ("all of the above", "A. all of the above"), ("above", "all", "B", "iron")),
    (ALL_OR_NONE, "C", ("both A and B", "C. Both A and B."), ("both", "A", "A. both A and B")),
    (
        TRENDS,
        "A",
        ("increase", "A. increase"),
        ("increase then decrease", "A. increase or decrease"),
    ),
    (
        TRENDS,
        "C",
        ("increase, then decrease", "C. increase then decrease"),
        ("C. decrease then increase", "decrease then increase", "C. decrease", "C. then"),
    ),
    (
        HUNDREDS,
        "A",
        ("12", "A. 12", "12.0", r"\boxed{12}"),
        ("1.2", "A. 1.2", "-12", "A. -12", "1,2"),
    ),
    (HALVES, "A", ("1/2", "0.5", r"A. $\frac12$"), ("2/1", "1:2", "-1/2", "A. -1/2", "1 2")),
    (UNITS, "A", ("5 m/s", "5m/s", "A. 5 m/s", "A. 5m/s"), ("5 km/s", "5km/s", "5", "50 m/s")),
    (TRUTHS, "B", ("true, false", "B. True, False"), ("True", "B. False, True", "B. True, True")),
    (GASES, "A", ("h2o", "H2O (A)", "A. H2O"), ("O2", "H2", "A. H2", "A. CO2", "H 2")),
    (POWERS, "A", ("$x^2$", "A. $x^2$"), ("-x^2", "A. -x^2", "A. x^3", "x2", "2x")),
    (
        ROMAN,
        "C",
        ("I and II", "C. I and II"),
        ("I", "II", "C. I only", "C. I, II, and III", "I and III"),
    ),
    (
        THINGS,
        "A",
        ("a cell", "cell", "A. cell", "A", "(A) a cell"),
        ("A. An atom", "organ", "A. organ"),
    ),
    (DOUBTS, "A", ("Yes", "A. Yes", "yes."), ("Yes, because it is cold.", "no, yes", "A. No", "D")),
    (DOUBTS, "B", ("No", "No, because it is cold."), ("not no", "B. Yes", "No or yes")),
    (NEGATED, "A", ("not iron", "A. not iron"), ("iron", "A. iron", "is iron")),
    (SKY, "A", ("sun", "A. the sun"), ("sun and moon", "A. the sun and the moon", "neither")),
    (TIMES, "A", ("10:30", "A. 10:30"), ("10.30", "1030", "A. 22:30", "A. 1030")),
    (
        DISTANCES,
        "A",
        ("1000 km", "1000km", "1,000 km", "A. 1000 km", "1000.0 km"),
        ("1000", "1000 m", "1000 miles", "2000 km", "A. 1000 m"),
    ),
    (DISTANCES, "B", ("2,000 km", "2000 km", "2000"), ("2000 m", "2000 miles", "20 km")),
    (
        LINES,
        "A",
        ("y=2x+3", "y = 2x+3", "$y=2x+3$", "A. y=2x+3", "**A** y=2x+3"),
        ("y=2x-3", "A. y=2x-3", "y=3x+2", "2x+3", "A. 2x+3=0"),
    ),
    (FIVES, "A", ("$5", "A. $5"), ("-5", "A. -5", "A. 5%", "5%")),
    (PETS, "A", ("a cat", "A. cat"), ("cat dog", "A. cat dog", "A. the cat's dog", "A. dog")),
    (BOUNDS, "A", ("a > b", "A. a > b"), ("a < b", "A. a ≥ b", "a b", "b > a", "A. a < b")),
    (MIXED, "A", ("11/2", "5.5", "5 1/2"), ("1 1/2", "1.5", "A. 1 1/2")),
    (
        ("it is done as it is right", "it is done", "as it is right"),
        "A",
        ("The answer is it is done as it is right.", "A. it is done as it is right", "A is right"),
        ("it is done", "as it is right", "B is right"),
    ),
    (
        METALS,
        "B",
        ("B. iron (it rusts)", "B. iron has atoms", "B. iron, as it conducts heat"),
        (
            *("B: iron (wood)", "B. iron [wood]", "B. non-iron", "B. without iron"),
            *("B. never iron", "B. iron excluded", "B. everything except iron"),
            *("iron, A", "iron A", "iron: A", "iron, C"),
            *("B. iron is ruled out", "B. rather than iron", "B. iron is unlikely"),
        ),
    ),
    (
        TENS,
        "B",
        ("10 (B)", "B = 10", "10, B", "(B) 10 apples"),
        ("10 (C)", "C = 10", "10 (option C)"),
    ),
    (TENS, "C", ("15 (c)", "C. 15", "15 m"), ("15 (B)", "A = 15", "10 (C)", "15, A")),
    (PRICES, "A", ("$5", "5 dollars", "A. 5 USD"), ("5 cents", "5%", "A. 50 dollars")),
    (PRICES, "C", ("$0.5", "0.5"), ("50 cents or more", "5 dollars")),
    (PRICES, "B", ("B", "50 dollars", "$50", "50"), ("50 cents", "50%", "B. 50 cents")),
    (HOURS, "A", ("3:00PM", "3:00 pm", "A. 3:00PM"), ("3:00AM", "3:00", "A. 3:00AM")),
    (
        ("increases", "increases then decreases"),
        "A",
        ("A. increases (always)",),
        ("A. increases (then decreases)", "A. increases [then decreases]"),
    ),
    (DAYS[1:2], "A", ("A. Planetary days will be shorter",), ("A. Planetary nights", "B")),
    (("slower", "faster", "the same"), "A", ("A", "slower", "A) slower"), ("D", "faster", "B")),
    (
        FORMS,
        "A",
        ("$H_2O$", "H\u2082O", r"\mathrm{H_{2}O}", r"\ce{H2O}", r"A. $\text{H}_2\text{O}$", "h2o"),
        ("H_2O_2", "H\u2082", "HO", r"A. $\mathrm{H_2O_2}$", "$H^2O$"),
    ),
    (FORMS, "C", ("Na^+", "Na\u207a", "$Na^{+}$", r"C. \ce{Na+}"), ("Na", "Na^-", "D. Na^+")),
    (FORMS, "E", ("10^{-3}", "$10^{-3}$", "10\u207b\u00b3", "E. 10^-3"), ("10^3", "10-3", "103")),
    (
        ("3 x 10^8 m/s", "3 x 10^6 m/s", r"$2 \times 10^{-3}$ kg"),
        "A",
        ("3 \u00d7 10^8 m/s", r"$3 \times 10^8$ m/s", "A. 3\u00b710\u2078 m/s", "3*10^8 m/s"),
        ("3 \u00d7 10^6 m/s", "A. 3 \u00d7 10^6 m/s", "3 10^8 m/s", r"3 \times 10^8 km/s"),
    ),
    (
        ("3 x 10^8", r"$2 \times 10^{-3}$ kg"),
        "B",
        ("2 x 10^-3 kg", "2\u00d710\u207b\u00b3 kg"),
        ("2",),
    ),
    (METALS, "B", ("The correct letter is B", "Thus: B", "letter: B"), ("the letter is B or C",)),
    (("a", "b", "c", "d", "e e"), "E", ("E", "e e", "E. e e"), ("e f", "A", "D")),
    (
        METALS,
        "B",
        ("iron\nB", "iron.\n\nAnswer: B", "B\u2014iron", "```B```"),
        ("iron\nA", "B\u2014wood"),
    ),
    (ROMAN, "A", ("A. I", "A) I only", "a. i only"), ("I", "A. II", "B. I")),
    (METALS, "B", (), ("B. C", "B. D", "2. iron", "B/C", "B/iron/C", "b or not b", "I")),
)

# (gold, answers that are it, answers that are not), for golds without choices
NUMBERS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "18",
        (
            *(
                "So the total is **18**",
                "So the total is **18**.",
                "the total is *18*",
                "total: `18`",
            ),
            *(
                "She has __18__ eggs",
                "she makes **$18** a day",
                "The total is $**18**",
                "it costs _18_",
            ),
            *(r"So the total is \(18\)", r"the total is \boxed{18}.", "the total is <b>18</b>"),
            *("The cost before tax is 18 dollars", "Before tax: 18", "Within a year: 18"),
            *('the total is "18"', "The total is **18 apples**", "Total = **18.0**"),
            *("She bakes **18**", "they need (in all): **18**", "so, **18**"),
        ),
        (
            *(
                "18th",
                "the 18th",
                "The 18th",
                "on the 18th",
                "18 th",
                "18-th",
                "18ths",
                "18th of May",
            ),
            *(r"18^{th}", r"18\text{th}", r"18^{\text{th}}", "**18th**", "the answer is 18th"),
            *("the 18th floor", "So the total is **18th**", "9 + 9 = 18th", "18TH"),
            *("the total is **2** **18**", "the total is 2**18**", "the total is **18**2"),
            *(
                "the total is **18** or **19**",
                "not **18**",
                "**18** times **2**",
                "total **17** **18**",
            ),
            *("the total is **18 or 19**", "the total is 2 * **18**", "about **18**", "x **18** y"),
        ),
    ),
    (
        "18",
        (
            *("**18**%", "(**18**)", "(**18**%)", "**18** dollars", "$**18**", "$**18**$"),
            *("*18*%", "`18`%", "__18__ dollars", "the answer is **18** dollars"),
            *("the total is **18**%.", "the total is (**18**)", "<b>18</b> dollars"),
            *(r"\(18\) dollars", r"\boxed{18}\%", r"\boxed{18} dollars", '"18" dollars'),
            *("'18' dollars", "9 * 2 = **18**%", "**9 + 9** = **18**", "*9* + *9* = *18*"),
            *("2 multiplied by 9 is 18", "36 divided by 2 is 18", "18 is 9 + 9"),
            *("9 + 9 makes 18", "eighteen (18)", "18 [units]", "18 \u2013 eighteen", "=> 18"),
            *("\u2192 18", "\u2022 18", "18\u200b", "\ufeff18", r"18\;", "18~dollars"),
            *(r"{\bf 18}", r"\displaystyle 18", r"\textbf{18}\%", "equals 18"),
            *("so the total equals 18", "the total is **18**!", "Ans. 18"),
            *("The answer must be 18", "We choose 18", "\U0001d7cf\U0001d7d6", "\u2705 18"),
            *("every 18 days", "the price increased by 18", r"18\%"),
        ),
        (
            *("multiplied by 18", "It is multiplied by **18**", "multiply by 18"),
            *("divided by 18", "divisible by 18", "add 18", "subtracting 18"),
            *("a multiple of 18", "a factor of 18", "the power of 18", "out of 18"),
            *("one in 18", "two out of 18", "per 18", "mod 18", "in base 18", "root 18"),
            *("before 18", "beyond 18", "since 18", "within 18", "exceeds 18", "approaching 18"),
            *("estimated at 18", "could be 18", "may be 18", "might be 18", "I guess 18"),
            *("I think 18", "unlike 18", "false: 18", "18 is false", "impossible: 18"),
            *("Is it 18", "was that 18", "c. 18", "18 pi", "18 xy", "18 - x", "18 \u2013 x"),
            *("**18**^2", "2**18**", "-**18**", "**18**th", "**18** + **2**", "**18**/**2**"),
            *("(**18**) (**19**)", "**18**% of 50", "**not** 18", "~**18**", "~~18~~"),
            *("18 and 1/2", "(18) (19)", "2 * **18** * 2"),
        ),
    ),
    ("-18", ("-**18**", "**-18**", "(**-18**)", "-**18**%"), ("**18**", "2-**18**")),
    ("3.5", ("3 and 1/2", "**3 1/2** cups", r"3~\frac12"), ("3 and 1", "3 and 5/2", "3 or 1/2")),
    ("21", ("21", "21 nd"), ("21st", "21 st", "the 21st", r"21\text{st}", "21ST century")),
    ("11", ("11 st", "11 apples"), ("11th", "the 11th")),
    ("3", ("3 rounds", "3 stones"), ("3rd", "3 rd", "the 3rd of them")),
    ("0.75", ("3/4", "3/4th", "the share is **3/4**"), ("3rd/4th", "4th")),
    (
        "18",
        (
            *("18", "18.", "18.0", "18.00", "$18", "$18.00", r"\$18", "$18$", "+18", "**18**"),
            *(r"\boxed{18}", r"\mathbf{18}", r"\text{18}", r"\boxed{\mathbf{18}}", "18 dollars"),
            *("9+9=18", "9 + 9 = 18", r"2 \times 9 = 18", "2 x 9 = 18", "9 + 9 = 18 dollars"),
            *("18 = 9 + 9", "x = 18", "Total = 18", "9 apples + 9 apples = 18 apples", "36/2"),
            *("18 miles/hour", "18 miles per hour", "18 apples", "18%", "18 m^2", "18°"),
            *(r"18 \text{ cm}^2", r"18^\circ", "18kg", "18 USD", "USD 18", "18 (eighteen)"),
            *("The answer is 18", "Answer: 18", "the total is 18 dollars", "She makes $18 a day."),
            *(
                "US$18",
                r"the total is \text{18} dollars",
                "18 = 18.0",
                "18,",
                "54/3 = 18",
                "(20 - 2) = 18",
            ),
        ),
        (
            *("19", "-18", "1.8", "180", "18 or 20", "18, 20", "18 and 20", "18-20", "18 to 20"),
            *("not 18", "about 18", "at least 18", "more than 18", "18 or more", "18x", "18 x"),
            *("18 = 20", "18x = 18", "x > 18", "eighteen", "", "9 + 9", "9 + 9 = 20", "18 - 2"),
            *("18 dollars and 5 cents", "18^2", "5x = 18", "18/2", "18, not 20", "- 18"),
            *("the answer is not 18", "x = 18 or x = 20", "18 million", "maybe 18", "18 minus"),
        ),
    ),
    (
        "-5",
        ("-5", "\u22125", "\u20135", "- 5", "-$5", "minus 5", "x = -5"),
        ("5", "+5", "5 - 10", "-50"),
    ),
    ("5", ("5", "10 - 5 = 5"), ("-5", "is - 5", "a loss of -5", "minus 5", "negative 5")),
    ("1,080", ("1080", "1,080", "$1,080.0", "1{,}080", r"1\,080"), ("1,08", "10 80", "108")),
    ("109,200,000", ("109200000", "109.2 million", "$109,200,000"), ("109.2", "109,200")),
    ("3.5", (r"3\frac{1}{2}", "3 1/2", "7/2", "3 1/2 cups", "3.50"), ("31/2", "3", "3/2")),
    (
        "18",
        (
            *("¥18", "₹18", "18 €", "Rs. 18", "18¢", "１８", "18。", "18h", "18 hrs", "18L", "18:"),
            *("1.8e1", "1.8 × 10^1", r"1.8 \times 10^{1}", "1.8*10^1", "0.18 × 10²", "180 × 10⁻¹"),
            *("The answer is **18**.", "The result is **18**", "Thus, **the answer is 18**"),
            *("<b>18</b>", "## 18", "#### 18", "{18}", "(18)", "[18]", "= 18", "=18", "So, 18"),
            *(
                "(3)(6) = 18",
                "3(6) = 18",
                "50% of 36 = 18",
                "18 (9 + 9)",
                "18 (3 × 6)",
                "9+9 =\n18",
            ),
            *("9 plus 9 = 18", "9 plus 9 equals 18", "2 times 9 = 18", "36 divided by 2 = 18"),
            *("18 times", "18 times a day", "18 times as many", "18 is correct", "I choose 18"),
            *("18 left over", "a total of 18", "18 more", "36 × 50% = 18"),
            *("The square has an area of 18", "the root is 18", "the other half is 18"),
            *("There are 18 of them", "18-year-old", "18 kg", "18 sq. ft.", "18 m/s^2", "00018"),
        ),
        (
            *("18ish", "18 below zero", "18 bn", "18 trillion", "18k", "half of 18", "twice 18"),
            *(
                "double 18",
                "18 squared",
                "18 cubed",
                "a third of 18",
                "18 times two",
                "18 point five",
            ),
            *("two times 18", "18!", "18π", r"18\pi", r"\sqrt{18}", "√18", "<18", "≥ 18", "≈ 18"),
            *("~18", "18±1", "18+", "18?", "18:30", "18 : 1", "18–20", "1 8", "18 19", "18e2"),
            *(
                "18 × 10^2",
                "18 × 10^-1",
                "18,000",
                "18 000",
                "18'000",
                "18.000.000",
                "18,5",
                "1/18",
            ),
            *(
                "18% of 20",
                "18 of 20",
                "18 out of 20",
                "18 and a half",
                "18' 6\"",
                "18 feet 6 inches",
            ),
            *("{18, 20}", "[18, 20]", "(18, 20)", "18 | 20", "18; 20", "1) 18 2) 20", "18 ≠ 20"),
            *("∞", "NaN", "none", "N/A", "−18", "–18", "﹣18", "(-18)", "18 is wrong", "isn't 18"),
            *("18 (not 20)", "18 (or 20)", "18 → 20", "no more than 18", "up to 18", "18. No, 20."),
            *("It wasn't 18", "It doesn't equal 18", "I don't think it is 18", "18 won't do"),
            *("approx. 18", "18 approx.", "ca. 18", "circa 18", "hardly 18", "I doubt 18"),
            *("half 18", "18 halved", "18 doubled", "18 factorial", "the square root of 18"),
            *("the square of 18", "log 18", "sin 18", "nowhere near 18"),
            *("9" * 3000, "18 " * 2000, "{" * 5000, "9 " * 900),
        ),
    ),
    (
        "1234567.5",
        (
            *("1,234,567.5", "1 234 567.5", "1.234.567,5", "1'234'567.5", "1\u00a0234\u00a0567.5"),
            *("1\u202f234\u202f567.5", "12,34,567.5", "1_234_567.5", "1.2345675e6", "1’234’567.50"),
        ),
        ("1,234,567", "1.234.567", "1234.567", "12,345,67.5", "1 234 567,5 or 6", "1,23,4567.5"),
    ),
    (
        "70000",
        (
            "70k",
            "$70k",
            "70K",
            "70 thousand",
            "70 000",
            "7e4",
            "7 × 10⁴",
            "7*10^4",
            "$70,000 profit",
        ),
        ("70", "7e3", "70M", "7 × 10^-4", "70.000", "700k", "7e40"),
    ),
    ("0.0007", ("7e-4", "7 × 10^-4", "7 × 10⁻⁴", ".0007"), ("7e4", "7 × 10^4", "0.007", "7e-40")),
    (
        "0.5",
        ("1/2", ".5", "5e-1", r"\frac12", "½", "½ cup", "50/100"),
        ("1:2", "5", "2", "half of 1"),
    ),
    ("3.5", ("3½", "3 ½", "3 + 1/2 = 3.5"), ("½", "-3½", "3 2/1", "31/2")),
    ("-7", ("-7°C", "(-7)", "3 - 10 = -7", r"\boxed{-7}", "-$7"), ("--7", "10-3", "7", "-7 or 7")),
    ("25", ("25%", "25 percent off", "5^2 = 25", "1/4 of 100 = 25"), ("25^2", "2,5", "25 to 30")),
    ("12,000,000,000", ("12 billion", "12 bn", "12,000 million", "$12bn"), ("12", "12 million")),
    ("10:30", ("10:30", "**10:30**", "The answer is 10:30"), ("10.30", "1030", "22:30")),
    ("3:4", ("3:4", "It is 3:4"), ("4:3", "3/4", "0.75", "34")),
    ("4.5", ("4 1/2", "9 halves"), ("3 3/2", "3 and 3/2")),
    ("4", ("4", "4 fifth graders", "4 m2", "4 cm3", "4 ft2"), ("3 2/2", "3 and 2/2", "4 fifths")),
    (
        "18",
        ("18 months", "18 seconds", "18 dozen"),
        ("18 tenths", "18-hundredths", "upwards of 18"),
    ),
    ("1800000", ("18 lakh", "1.8 mln"), ("18 crore", "18 tn", "18")),
    (
        "0.1",
        ("1 tenth", "1 tenth.", "100 thousandths"),
        ("10", "1 tenth grader", "1 tenth or more"),
    ),
    (
        "2/3",
        (r"\frac{2}{3}", "4/6", "2/3 of a pound", "2 thirds of it"),
        ("0.67", "3/2", "23", "2", "-2/3"),
    ),
    ("May 5", ("May 5", "may 5."), ("5", "May 6", "5 May 5")),
    (
        "20",
        (
            "20 in June",
            "June: 20",
            "(40 \u2013 20) \u00d7 1 = $20",
            "30 \u2014 10 = 20",
            "R$20",
            "CA$20",
        ),
        ("June 20", "20 June", "Dec. 20", "on May 20", "30 \u2013 20", "B$20"),
    ),
    ("1200000", ("$1.2M", r"\$1.2M", r"1\ 200\ 000", "\u20ac1.2M"), ("1.2M", "$1.2MB", "$1.2B")),
    ("3000000000", ("$3B", "a profit of $3B", "$3 B"), ("3B", "$3M", "3 B")),
    ("1200000", ("$1.2 M", "$1.2 million"), ("1.2 M", "$1.2 MB")),
    (  # the same number again in brackets, exclaimed, in a block of code
        "18",
        (
            *("$18 ($18.00)", "18 (=18.0)", "18 dollars (18.00 USD)", "18 eggs (18)"),
            *("18 eggs!", "The answer is: **18** eggs!!", "```18```", "```\n18\n```"),
            *(
                "18 eggs (12 + 6)",
                "Rs. 18",
                "18 yo",
                "18-fold",
                "Day 18",
                "\u00a318",
                "18.00 USD",
            ),
        ),
        (
            *("$18 ($19)", "18 (=19)", "18 (18 or 19)", "18!", "18 n!", "18 /= 18", "18 - = 18"),
            *(
                "18 =/= 18",
                "x != 18",
                "\u00b118",
                "|18|",
                "18:00",
                "\u20ac18,00",
                "(5)",
                "18\ufe0f\u20e3 19",
            ),
            *("12/6/18", "18/6/12", "18.5.2", "18..", "18 p.m. or so", "one eight", "1 8", "<18>"),
        ),
    ),
    ("90", ("90 minutes", "90 min."), ("1 hour 30 minutes", "90 minutes (1 hour 30 minutes)")),
    ("-5", ("-$5", "$-5", "\u22125.0"), ("5-", "(5)", "loss of 5")),
)

TEXTS: tuple[tuple[str, str, float], ...] = (  # answer, gold, F1
    *(("yes", "yes", 1.0), ("Yes.", "yes", 1.0), ("no", "yes", 0.0), ("no, yes", "yes", 0.0)),
    *(("yes, it is", "yes", 0.0), ("yes or no", "no", 0.0), ("no", "no, thanks", 0.0)),
    *(("noanswer", "Paris", 0.0), ("Paris", "noanswer", 0.0), ("no", "No", 1.0)),
    *(("Paris", "Paris", 1.0), ("the Paris", "paris", 1.0), ("Paris, France", "Paris", 2 / 3)),
    *(("London", "Paris", 0.0), ("Answer the Call", "Ghostbusters: Answer the Call", 0.8)),
    *(("yes yes", "yes", 0.0), ("**yes**", "yes", 1.0), ("true", "yes", 0.0), ("y", "yes", 0.0)),
    *(("no answer", "noanswer", 0.0), ("the no", "no", 1.0), ("yes", "Yes, sir", 0.0)),
    *(("Yes - both were", "yes", 0.0), ("not no", "no", 0.0), ("", "yes", 0.0), (" ", "no", 0.0)),
    *(("<b>yes</b>", "yes", 1.0), (r"\boxed{yes}", "yes", 1.0)),
    *((r"\text{No}", "no", 1.0), ("\u201cyes\u201d", "yes", 1.0)),
    *(("\u00abno\u00bb", "no", 1.0), ("yes\u200b", "yes", 1.0)),
    *(("\uff59\uff45\uff53", "yes", 1.0), ("**no**!", "no", 1.0)),
    *(("yes (probably)", "yes", 0.0), ("maybe no", "no", 0.0)),
    *(("**yes** and **no**", "yes", 0.0), ("<b>Riga</b>", "Riga", 1.0)),
    *((r"\textbf{Riga}", "Riga", 1.0), ("\u201cRiga\u201d", "Riga", 1.0)),
    *(("the **Riga** docks", "Riga docks", 1.0), ("yes/no", "yes", 0.0)),
    *(("O\u2019Brien", "O'Brien", 1.0), ("O\u00b4Brien", "O\u2019Brien", 1.0)),
    *(("Jean\u2011Luc", "Jean-Luc", 1.0), ("1984-1990", "1984\u20131990", 1.0)),
    *(("Beyonce\u0301", "Beyonc\u00e9", 1.0), ("Beyonce", "Beyonc\u00e9", 0.0)),
    *(("\u201cRiga\u201d docks", '"Riga" docks', 1.0), ("well\u2026 Riga", "well... Riga", 1.0)),
    *(("yes \u2014 both", "yes", 0.0), ("198\u20134", "198\u20135", 0.0)),
    *(("not yes", "no way", 0.0), ("1990", "1990.", 1.0), ("The The", "the the", 1.0)),
)

EXPRESSIONS: tuple[tuple[str, str, float], ...] = (  # answer, gold, score by the judge
    *(
        ("18th", "18", 0.0),
        (r"18^{\text{th}}", "18", 0.0),
        ("18", "18th", 0.0),
        ("18th", "18th", 1.0),
    ),
    *(("**18**%", "18", 1.0), ("(**18**)", "18", 1.0), ("**18** dollars", "18", 1.0)),
    *((r"18\,", "18", 1.0), (r"18~\text{cm}", "18", 1.0), (r"{\bf 18}", "18", 1.0)),
    *(("18\u200b", "18", 1.0), (r"6\%", "6", 1.0), ("6", r"6\%", 1.0)),
    *(("**50**%", r"50\%", 1.0), (r"3~\frac12", r"\frac72", 1.0)),
    *(("3 and 1/2", r"\frac72", 1.0), (r"3(\frac12)", r"\frac72", 0.0)),
    *((r"3\left(\frac{1}{2}\right)", r"\frac32", 1.0),),
    *((r"3\,\frac{1}{2}", "3.5", 1.0), (r"-3\frac12", "-3.5", 1.0)),
    *((r"-3\frac12", "-2.5", 0.0),),
    *((r"2\frac{3}{4}\text{ cups}", r"\frac{11}{4}", 1.0), (r"\neq 18", "18", 0.0)),
    *((r"\lim_{x \to 0} \frac{\sin 5x}{x} = 5", "5", 1.0), (r"f: A \to B, f(1)=5", "5", 1.0)),
    *((r"\text{least value} = 5", "5", 1.0), (r"\text{no. of ways} = 5", "5", 1.0)),
    *((r"\text{Point } A = 5", "5", 1.0), (r"x = \text{at least } 5", "5", 0.0)),
    *((r"\approx 18", "18", 0.0), (r"18 \text{ or more}", "18", 0.0)),
    *((rf"{sign} 18", "18", 0.0) for sign in (r"\le", r"\geq", r"\leqslant", r"\gt", r"\cong")),
    *((f"{sign} 18", "18", 0.0) for sign in "<>\u2264\u2265\u2245"),
    *(("9 + 9 => 18", "18", 1.0), (r"\left(18\right)", "18", 1.0), (r"\therefore 18", "18", 1.0)),
    *(("19 = 18", "18", 0.0), ("x = 19 = 18", "18", 0.0), ("20 - 2 = 18.0", "18", 1.0)),
    *((r"1 = 100\%", "1", 1.0), (r"\frac{7}{3} = 2.33", "2.33", 1.0)),
    *((r"11\!:\!00 \text{ AM}", r"11:00\text{ a.m.}", 1.0), ("11", r"11:00\text{ a.m.}", 0.0)),
    *(("noon", "12:00", 0.0), (r"11:30\text{ p.m.}", r"11:30\text{ a.m.}", 0.0)),
    *(("11:30", r"11:30\text{ a.m.}", 1.0), ("11 a.m.", "11:00", 1.0)),
    *((r"18\text{ tenths}", "18", 0.0), ("18 halves", "9", 1.0)),
    *((r"\text{at least }18", "18", 0.0), ("18?", "18", 0.0)),
    *((r"18\text{ million}", "18", 0.0), ("18 million", "18000000", 1.0)),
    *(("18 - x", "18", 0.0), ("multiplied by 18", "18", 0.0), ("18-x", "18", 0.0)),
    *(("So the total is 18", "18", 1.0), (r"\text{Option B}", r"\text{(B)}", 1.0)),
    *(("choice (B)", r"\text{(B)}", 1.0), ("Option C", r"\text{(B)}", 0.0)),
    *(("c = 18", "18", 1.0), ("18 = 9 + 9", "18", 1.0)),
    *((r"\textbf{Evita}", r"\text{Evita}", 1.0),),
    *(("Evita or Carla", r"\text{Evita}", 0.0),),
    *((r"3, 5,\text{ and }7", "3,5,7", 1.0), (r"x \neq 2", "x = 2", 0.0)),
    *((r"0.06\%", "6", 0.0), ("half of 36 is **18**", "18", 0.0)),
    *((r"-7\text{th}", "-7", 0.0), ("the 18th", "18", 0.0), ("So the total is **18**", "18", 1.0)),
    *((r"18^{th}", r"18^{\text{th}}", 1.0), ("21st", "21", 0.0), ("3 rods", "3", 1.0)),
    *((r"3\frac{1}{2}", r"\frac{7}{2}", 1.0), (r"3\frac{1}{2}", "31/2", 0.0)),
    *((r"137 \frac{1}{2}", "137.5", 1.0), ("18 dollars", "18", 1.0), ("18", r"18\text{ cm}", 1.0)),
    *(("9 + 9 = 18", "18", 1.0), (r"\mathbf{18}", "18", 1.0), (r"\boxed{18}", "18", 1.0)),
    *(("18 or 20", "18", 0.0), ("x > y", "x < y", 0.0), ("-5", "5", 0.0), ("5", "-5", 0.0)),
    *(("C", r"\text{(C)}", 1.0), ("D", r"\text{(C)}", 0.0), ("**18**", "18", 1.0)),
    *(("0.333333", r"\frac13", 1.0), ("0.33", r"\frac13", 0.0), ("0.5", r"50\%", 1.0)),
    *(("1+x", "x+1", 1.0), ("x-1", "x+1", 0.0), ("(2,1)", "(1,2)", 0.0), ("$x$", "x", 1.0)),
    *(("½", r"\frac12", 1.0), (r"3\times 10^8", "300000000", 1.0), (r"\{1,2\}", r"\{2,1\}", 1.0)),
    *(("[1,2]", "(1,2)", 0.0), (r"10\%", "0.1", 1.0), ("1:2", "2:1", 0.0), ("5!", "120", 1.0)),
    *((r"x \le 3", "x < 3", 0.0), (r"\infty", r"-\infty", 0.0), ("12_3", "12_{3}", 1.0)),
    *(("12_3", "12_4", 0.0), ("12_3", "11_3", 0.0), ("AF_{16}", "af_16", 1.0), ("18k", "18", 0.0)),
    *((r"1\,000\,000", "1000000", 1.0), ("i", "-i", 0.0), ("x-1", "1-x", 0.0), ("{18}", "18", 1.0)),
    *(("x=5", "5", 1.0), (r"\$5", "5", 1.0), (r"\text{(A)}", r"\text{(B)}", 0.0)),
    *(("20", r"\text{June 21}", 0.0), (r"\frac 59", "5/9", 1.0), (r"\frac{50}3", "50/3", 1.0)),
    *(
        ("The answer is x+1", "1+x", 1.0),
        ("So, x+1", "x", 0.0),
        (r"Answer: $\sqrt{8}$", r"2\sqrt2", 1.0),
    ),
    *(("5:00", r"05\!:\!00", 1.0), ("425", r"05\!:\!00", 0.0), ("6:00", r"05\!:\!00", 0.0)),
    *(("2:3", "4:6", 1.0), ("7:00", "7", 0.0), ("7:00", r"\frac{7}{2}", 0.0)),
    *(("20", r"\text{June 20}", 0.0), ("20 June", r"\text{June } 20", 1.0)),
    *(("June 20th", "20 June", 1.0), ("the 20th of June", "June 20", 1.0)),
    *(("June 21", "June 20", 0.0), ("July 20", "June 20", 0.0), ("June", "June 20", 0.0)),
    *(("144th", r"144^{\text{th}}", 1.0), ("145th", r"144^{\text{th}}", 0.0)),
    *(("144th place", "144th seat", 0.0),),
    *((r"\{0,1\}", "(0,1)", 0.0), ("(0,1)", r"\{0,1\}", 0.0), (r"x\in\{1,2\}", "(1,2)", 0.0)),
    *((r"\{(1,2),(3,4)\}", "(1,2),(3,4)", 1.0), (r"\{1,0\}", r"\{0,1\}", 1.0)),
    *(("4", r"4\text{ hours }30\text{ minutes}", 0.0), ("6 ft 2 in", "6", 0.0)),
    *((r"4\text{ hours } 30\text{ minutes}", "4 hours 30 minutes", 1.0),),
    *(("1.50 dollars", r"\$1.50", 1.0),),
    # a tuple has an order, whichever of the two has the brackets
    *(("3,4", "(3,4)", 1.0), ("4,3", "(3,4)", 0.0), ("(4,3)", "3,4", 0.0), ("4,3", "3,4", 1.0)),
    *(("x=3,y=4", "(3,4)", 1.0), (r"3,\frac12", r"\left(\frac12,3\right)", 0.0)),
    *(("4,3", r"\{3,4\}", 1.0), ("1,000", "(1,000)", 1.0), ("3,4", "[3,4]", 0.0)),
    *(("111111111", r"111, \! 111, \! 111", 1.0), (r"\text{Odd}", r"\text{odd}", 1.0)),
)

FORMULAS_BY_MEANING: tuple[tuple[str, str, float], ...] = (  # one, another, whether they are equal
    *(
        ("3\u221a2", r"3\sqrt{2}", 1.0),
        ("\u221a18", r"3\sqrt2", 1.0),
        ("\u221a12", r"\sqrt{1}2", 0.0),
    ),
    *(
        ("2\u221a(x+1)", r"2\sqrt{x+1}", 1.0),
        ("\u221ax", r"\sqrt{x}", 1.0),
        ("2\u221a2", r"3\sqrt2", 0.0),
    ),
    *(("x\u00b2+1", "x^2+1", 1.0), ("x\u00b2", "x^3", 0.0), ("x\u00b9\u2070", "x^{10}", 1.0)),
    *(("3x\u207b\u00b9", r"\frac{3}{x}", 1.0), ("2\u00b73x", "6x", 1.0)),
    *(("(-\u221e,2]\u222a[3,\u221e)", r"(-\infty,2]\cup[3,\infty)", 1.0),),
    *(("(-\u221e,2)\u222a[3,\u221e)", r"(-\infty,2]\cup[3,\infty)", 0.0),),
    *(("x\u2208[0,1]", "[0,1]", 1.0), ("x\u2208[0,1]", "(0,1)", 0.0), ("-\u221e", r"\infty", 0.0)),
    *((r"0.\overline{3}", r"\frac13", 1.0), (r"0.1\overline{7}", r"\frac{8}{45}", 1.0)),
    *((r"2.\bar{142857}", r"\frac{15}{7}", 1.0), (r".\overline 9", "1", 1.0)),
    *((r"0.\overline{3}", "0.3", 0.0), (r"-0.\overline{6}", r"-\frac23", 1.0)),
    *((r"\binom52", r"\binom{5}{2}", 1.0), (r"\dbinom{5}2", "10", 1.0), (r"\binom53", "5", 0.0)),
    *((r"\sqrt[3]2", "2^{1/3}", 1.0), (r"\sqrt[3]2", r"\sqrt2", 0.0)),
    *((r"\varnothing", r"\emptyset", 1.0), (r"\varnothing", "0", 0.0)),
    *(("1.5e5", r"1.5\times 10^5", 1.0), ("2e-3", "0.002", 1.0), ("2e^3", "2000", 0.0)),
    *(("10^-3", "0.001", 1.0), ("x^-2", r"\frac{1}{x^2}", 1.0), ("10^-3", "1000", 0.0)),
    *((r"\frac{1\pm\sqrt5}{2}", r"\frac{1+\sqrt5}{2}, \frac{1-\sqrt5}{2}", 1.0),),
    *((r"\frac{1\pm\sqrt5}{2}", r"\frac12\pm\frac{\sqrt5}{2}", 1.0),),
    *((r"\frac{1\pm\sqrt5}{2}", r"\frac{1+\sqrt5}{2}", 0.0), ("\u00b13", "3,-3", 1.0)),
    *(("x>-5", r"(-5,\infty)", 1.0), (r"(-5,\infty)", "x>-5", 1.0)),
    *((r"-1\le x\le 1", "[-1,1]", 1.0), (r"-1\le x\le 1", "(-1,1)", 0.0)),
    *((r"3(\frac12)x", r"\frac{3x}{2}", 1.0), (r"3\left(\dfrac12\right)", "1.5", 1.0)),
    *((r"x\le2\text{ or }x\ge3", r"(-\infty,2]\cup[3,\infty)", 1.0),),
    *(("x\u22642 or x\u22653", r"(-\infty,2]\cup[3,\infty)", 1.0),),
    *(("x < 2 or x > 3", r"(-\infty,2]\cup[3,\infty)", 0.0),),
    *(("x < 2 or y > 3", r"(-\infty,2)\cup(3,\infty)", 0.0),),
    *((r"x<-\frac12 \lor x>3", r"(-\infty,-\frac12)\cup(3,\infty)", 1.0),),
    *(("x**10+2*x", "x^{10}+2x", 1.0), ("2**-1", r"\frac12", 1.0), ("x**2", "x^{20}", 0.0)),
    *(("$1+x$", "x+1", 1.0), ("**1+x**", "x+1", 1.0), ("so x+1", "y", 0.0), ("", "x", 0.0)),
    *(("$x$+$1$", "x+1", 1.0), (f"x{' ' * 1997}+1", "x+1", 1.0)),  # of 2,000 characters
    *((f"x{' ' * 1998}+1", "x+1", 0.0),),
)

# (metric, choices, groups of the same answers); answers of two groups are not the same
SAME: tuple[tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]], ...] = (
    (
        "exact_match",
        METALS,
        (
            ("B", "B. iron", "(b)", "**B**", "Option B", r"\boxed{B}", "b. iron", "iron"),
            ("A", "wood", "A. wood"),
            ("D", "**D**. air", "<b>D</b>", "air (Option D)", "- D. air", r"\textbf{D} air"),
            ("I think B",),
            ("B. wood",),
            ("B or C",),
            ("copper", "Copper."),
        ),
    ),
    (
        "exact_match",
        (),
        (
            ("18", "18 dollars", r"\boxed{18}", "9+9=18", "9 + 9 = 18", "$18.00", r"\mathbf{18}"),
            ("-18", "- 18", "minus 18"),
            ("18 or 20",),
            ("multiplied by 18",),
            (
                "20",
                "20 miles/hour",
                "The answer is 20",
                "**20** miles",
                "(**20**%)",
                "4 times 5 is 20",
            ),
            ("B", "(b)", "Option B"),
            ("x > y", "x  >  y."),
            ("x < y",),
        ),
    ),
    (
        "math",
        (),
        (
            ("18", "18 dollars", r"\boxed{18}", "9+9=18", "9 + 9 = 18", "$18.00", r"\mathbf{18}"),
            ("-18",),
            ("6", r"6\%", "**6**%", "6 percent"),
            (r"\neq 18",),
            (r"18\text{ million}",),
            ("x+1", "1+x", "x + 1"),
            ("x-1",),
            ("(3,4)", "3,4"),
            (r"\lim_{x \to 0} \frac{\sin 5x}{x} = 5", "5"),  # whichever of them is the gold
            (r"x<2\text{ or }x>3", r"(-\infty,2)\cup(3,\infty)"),
            ("x > y", "$x > y$"),
            ("x < y",),
            ("7/2", r"3\frac{1}{2}", "3.5"),
        ),
    ),
    (
        "f1",
        (),
        (
            ("yes", "Yes.", "YES", "<b>yes</b>", r"\text{yes}", "yes\u200b"),
            ("no", "No!"),
            ("no, yes",),
            ("Paris", "the Paris", "paris."),
            ("Paris, France",),
            ("18",),
            ("18 dollars",),
        ),
    ),
)

CHOICE_CASES = [
    (answer, gold, choices, score)
    for choices, gold, right, wrong in CHOICES
    for answers, score in ((right, 1.0), (wrong, 0.0))
    for answer in answers
]
NUMBER_CASES = [
    (answer, gold, score)
    for gold, right, wrong in NUMBERS
    for answers, score in ((right, 1.0), (wrong, 0.0))
    for answer in answers
]
PAIRS = [
    (metric, choices, a, b, is_same)
    for metric, choices, groups in SAME
    for k, group in enumerate(groups)
    for a, b, is_same in (
        *((a, b, True) for a in group for b in group),
        *((group[0], b, False) for other in groups[:k] for b in other),
    )
]


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


def test_the_table_is_a_table() -> None:
    assert len(CHOICE_CASES) + len(NUMBER_CASES) + len(TEXTS) + len(EXPRESSIONS) > 300
    assert len(PAIRS) > 200


@pytest.mark.parametrize(("answer", "gold", "choices", "score"), CHOICE_CASES)
def test_one_choice_named_and_only_one_scores(
    answer: str, gold: str, choices: tuple[str, ...], score: float, judge: Judge
) -> None:
    assert judge.score(EXACT_MATCH, answer, (gold,), choices) == score


@pytest.mark.parametrize(("answer", "gold", "score"), NUMBER_CASES)
def test_one_number_stated_and_only_one_scores(
    answer: str, gold: str, score: float, judge: Judge
) -> None:
    assert judge.score(EXACT_MATCH, answer, (gold,)) == score


@pytest.mark.parametrize(("answer", "gold", "score"), TEXTS)
def test_texts_score_by_the_official_f1(answer: str, gold: str, score: float, judge: Judge) -> None:
    assert judge.score(F1, answer, (gold,)) == pytest.approx(score)


@pytest.mark.parametrize(("answer", "gold", "score"), EXPRESSIONS)
def test_expressions_score_by_meaning(answer: str, gold: str, score: float, judge: Judge) -> None:
    assert judge.score(MATH, answer, (gold,)) == score


@pytest.mark.parametrize(("answer", "gold", "score"), FORMULAS_BY_MEANING)
def test_formulas_of_latex_and_of_signs_score_by_meaning(
    answer: str, gold: str, score: float
) -> None:
    assert equivalence(answer, gold) == score


@pytest.mark.parametrize(("metric", "choices", "a", "b", "is_same"), PAIRS)
def test_votes_and_talks_hold_the_same_answers_for_the_same(
    metric: str, choices: tuple[str, ...], a: str, b: str, is_same: bool, judge: Judge
) -> None:
    assert judge.are_same(METRICS[metric], a, b, choices) is is_same
    assert judge.are_same(METRICS[metric], b, a, choices) is is_same


@pytest.mark.parametrize(("metric", "choices", "a", "b", "is_same"), PAIRS)
def test_what_is_decided_without_the_judge_is_what_it_would_say(
    metric: str, choices: tuple[str, ...], a: str, b: str, is_same: bool
) -> None:
    cheap = METRICS[metric].same(a, b, choices)
    assert cheap is is_same or (metric == "math" and cheap is None)


@pytest.mark.parametrize(
    ("a", "b", "is_same"),
    [
        ("", "", False),
        (" ", "\n", False),
        ("x", " ", False),
        (" ", "x", False),
        (" ", " ", True),
        (r"\text{even}.", "even", True),
        ("Even", "even", True),
        ("1/2", "0.5", True),
        ("3", "4", False),
        ("-3", "3", False),
        ("50%", "50", True),
        ("50%", "0.5", None),  # a percentage of one or of a hundred
        ("0.5", "50%", None),
        ("0.333333", "1/3", None),  # nearer than 1/100,000
        ("0.33332", "1/3", False),
        ("0.00001", "0", False),
        ("5 m", "5", True),
        ("5", "5 m", True),
        ("5 m", "5 M", True),
        ("5 m", "5 km", None),
        ("5 m", "6 m", None),
        ("5 m", "5.0 m", True),
        ("-5 m", "5", False),
        ("x = 5 m", "5 m", True),
        ("110_2", "110_{2}", True),
        ("110_{2}", "110_2", True),
        ("1A_{16}", "1a_{16}", True),
        ("110_2", "110_3", False),
        ("110_2", "111_2", False),
        ("110_2", "6", None),
        (r"\text{(B)}", "B", True),
        ("(B)", r"\mathrm{B}", True),
        ("B", "C", None),
        ("B", "x", None),
        ("x+1", "1+x", None),
        ("19 = 18", "18", False),
        ("18 = 18", "18", True),
        (r"\le 18", "18", False),
        ("5:00", "05:00", True),
        ("5:00", "6:00", False),
        ("5:00", "5", False),
        ("5 p.m.", "5:00 PM", True),
        ("5 p.m.", "5 a.m.", False),
        ("5:30 p.m.", "5:30", True),
        ("5:30 p.m.", "5:31", False),
        ("5:30 p.m.", "6:30 p.m.", False),
        ("5:30 p.m.", "x", False),
        ("5 p.m.", "5", True),
        ("about 5", "5", False),
        ("5.00001 m", "5", False),
        ("5.000001 m", "5", None),
        ("111111111", r"111, \! 111, \! 111", True),
        ("$1.2B", "1200000000", True),
        ("5 times a day", "5", True),
        ("June 20", "20 June", True),
        (r"\text{June } 20", "the 20th of June", True),
        ("June 20", "June 21", False),
        ("June 20", "July 20", False),
        ("June 20", "June", False),
        ("June 20", "20", False),
        ("144th", r"144^{\text{th}}", True),
        ("The 144th", "144th", True),
        ("144th", "145th", False),
        ("144th", "144", False),
        ("144th place", "144th seat", False),
        ("144th", "x", False),
        (r"\{0,1\}", "(0,1)", False),
        (r"x\in\{1,2\}", "[1,2]", False),
        (r"\{1,2\}", r"\{3,4\}", None),
        ("(1,2)", "(3,4)", None),
        ("2:05", "4:10", None),  # may be ratios
        ("2:05", "x", None),
    ],
)
def test_texts_numbers_units_bases_and_letters_are_compared_without_the_judge(
    a: str, b: str, is_same: bool | None
) -> None:
    assert MATH.same(a, b) is is_same
    assert MATH.same(b, a) is is_same


@pytest.mark.parametrize(
    ("a", "b", "choices", "is_same"),
    [
        ("B", "iron", METALS, True),
        ("B", "b. iron", METALS, True),
        ("B", "C", METALS, False),
        ("gold", "Gold", METALS, True),  # the same text, though it names no choice
        ("gold", "B", METALS, False),
        ("gold", "silver", METALS, False),
        ("$18", "18 dollars", (), True),
        ("18", "19", (), False),
        ("Option B", "(b)", (), True),
        ("B", "C", (), False),
        ("B", "18", (), False),
        ("The answer is Wet  palms", "wet palms.", (), True),
        ("x > y", "x < y", (), False),
    ],
)
def test_choice_number_letter_or_text_is_what_exact_match_compares(
    a: str, b: str, choices: tuple[str, ...], is_same: bool
) -> None:
    assert EXACT_MATCH.same(a, b, choices) is is_same
    assert EXACT_MATCH.same(b, a, choices) is is_same


def test_own_metric_is_asked_both_ways_with_the_choices_and_named_when_it_fails() -> None:
    asked: list[tuple[str, str, tuple[str, ...]]] = []

    def score(answer: str, gold: str, choices: tuple[str, ...]) -> float:
        asked.append((answer, gold, choices))
        return 1.0 / (gold != "z")

    own = Metric("own", score)  # type: ignore[arg-type]
    assert own.same("x", "y", ("c",)) is True
    assert asked == [("x", "y", ("c",)), ("y", "x", ("c",))]
    with pytest.raises(JudgeError, match="answer 'x' against 'z': metric own raised Zero"):
        own.points("x", "z")


def test_mathematics_beside_choices_says_only_what_its_choice_does() -> None:
    assert MATH.says_only("(B)", "B", ("7", "8"))
    assert MATH.says_only("8", "8.0", ("7", "8"))
    assert not MATH.says_only("8 metres", "8", ("7", "8"))  # another word


def test_words_of_a_choice_are_its_own_within_brackets_and_without() -> None:
    choices = ("wood", "iron(II) oxide")
    assert EXACT_MATCH.says_only("B. iron (II) oxide", "B", choices)
    assert EXACT_MATCH.says_only("option B", "B", choices)
    assert not EXACT_MATCH.says_only("B because it rusts", "B", choices)


@pytest.mark.parametrize("letter", ["**B**", "Option B", r"\boxed{B}", "(b)", "b. volcano", "B."])
def test_a_gold_letter_is_found_where_the_choices_are_not_known(letter: str, judge: Judge) -> None:
    assert judge.score(EXACT_MATCH, letter, ("B",)) == 1.0


@pytest.mark.parametrize("letter", ["B) or C)", "B or C", "A", "Because", "B. C", "not B", "BC"])
def test_a_hedged_letter_is_none_also_where_the_choices_are_not_known(
    letter: str, judge: Judge
) -> None:
    assert judge.score(EXACT_MATCH, letter, ("B",)) == 0.0


PIECES = st.sampled_from(
    [
        *(*"aAbB15,.$%{}()-+= x><?", "**", "\\boxed{", "\\frac", "\\text{", "the ", "\n", "²", "١"),
        *("iron", "wood", "B. ", "Option ", "yes", "no", " or ", " = ", "dollars", "x > y", "18"),
    ]
)
ANSWERS = st.lists(PIECES, min_size=1, max_size=12).map("".join) | st.text(min_size=1, max_size=20)


@given(ANSWERS, ANSWERS)
def test_sameness_is_symmetric_and_reflexive(a: str, b: str) -> None:
    for metric in METRICS:
        for choices in ((), METALS, ORDERS, SPEEDS):
            assert METRICS[metric].same(a, a, choices) is True
            there = METRICS[metric].same(a, b, choices)
            assert there is METRICS[metric].same(b, a, choices)
            assert there is not None or metric == "math"


@given(ANSWERS, st.sampled_from("ABCD"))
def test_what_scores_agrees_with_the_gold(answer: str, gold: str) -> None:
    score = Judge().score(EXACT_MATCH, answer, (gold,), METALS)
    if answer.strip():
        assert bool(score) is EXACT_MATCH.same(answer, gold, METALS)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_no_gold_is_a_placeholder_and_every_gold_is_the_same_as_itself(
    task: Task, split: Split, shared_data: Path
) -> None:
    if not shared_data.is_dir():
        pytest.skip("the rows of the benchmarks are not beside this repository")
    made = DataSection(n_train=200, n_test=50)
    data = made if task.generate else DataSection(path=str(shared_data / task.name))
    judge = Judge()
    for problem in load_problems(task, data, split, n_agents=2, seed=0).problems:
        for gold in problem.golds:
            assert not is_placeholder(gold, task.answer_style, problem.choices)
            assert judge.score(task.metric, gold, problem.golds, problem.choices) == 1.0
            assert judge.are_same(task.metric, gold, f" {gold} ", problem.choices)
        for choice in problem.choices:
            assert not is_placeholder(choice, task.answer_style, problem.choices)
