"""Cases for the MATH answer grader, written without sight of it.

    python experiments/grades.py

EQUAL and DIFFERENT hold bare answers by category, RESPONSES whole responses with their reward, and
BAIT strings that have hung, crashed or fooled graders. Labels follow the written policies: the last
box only; list order is free; units are dropped; 10\\% is 10 but not 0.1; x = 5 is 5; an unreduced
fraction is right; a rounded decimal or a missing base is not; repeats count. Where graders
legitimately differ, there is no case. The categories "found later" hold what was wrong at first.
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path

# Each row: the reference answer, then predictions that are right.
_equal = {
    "integers, decimals": [
        ("5", "5", " 5 ", "5.0", "5.", "+5"),
        ("-3", "-3", "- 3", "-3.0", "(-3)"),
        ("0.5", ".5", "0.50", r"\frac12", "1/2"),
        ("12.5", "12.50", r"\frac{25}{2}", r"12\frac12"),
        ("0.001", "10^{-3}", r"\frac{1}{1000}", "0.0010"),
        ("-0.25", "-.25", r"-\frac14"),
    ],
    "fractions": [
        (r"\frac{1}{2}", r"\frac12", r"\frac 12", r"\frac1{2}", r"\frac{1}2", r"\dfrac{1}{2}"),
        (r"\frac{1}{2}", r"\tfrac{1}{2}", r"\dfrac12", "1/2", "1 / 2", r"\frac{ 1 }{ 2 }", "0.5"),
        (r"\frac{1}{2}", r"\left(\frac{1}{2}\right)", r"{1\over2}", r"{1 \over 2}", r"\frac{2}{4}"),
        (r"-\frac{3}{4}", r"\frac{-3}{4}", r"\frac{3}{-4}", "-3/4", r"-\dfrac34", "-0.75"),
        (r"\frac{13}{4}", "3.25", "13/4", r"\frac{26}{8}"),
        (r"\dfrac{9}{7}", r"\frac{9}{7}", "9/7", r"\frac97", r"1\frac{2}{7}"),
        (r"\frac{3}{2}", r"\frac{1}{\frac{2}{3}}", r"\frac{3/4}{1/2}", r"\frac{6}{4}"),
        (r"\frac{x}{y}", "x/y", r"\dfrac{x}{y}", r"\frac xy"),
        (r"\frac{x+1}{2}", "(x+1)/2", r"\frac12(x+1)", r"\frac{x}{2}+\frac{1}{2}"),
    ],
    "mixed numbers": [
        (r"\frac{9}{5}", r"1\frac{4}{5}", r"1\frac45", r"1 \frac{4}{5}", r"1\dfrac{4}{5}"),
        (r"\frac{9}{5}", "1 4/5", "1.8"),
        (r"3\frac{1}{8}", r"\frac{25}{8}", "3.125", "25/8", "3 1/8"),
        (r"-2\frac12", r"-\frac52", "-2.5", "-5/2"),
    ],
    "radicals": [
        (r"\sqrt{2}", r"\sqrt2", r"\sqrt 2", "2^{1/2}", r"2^{\frac{1}{2}}", r"\frac{2}{\sqrt{2}}"),
        (r"2\sqrt{3}", r"\sqrt{12}", r"2 \sqrt 3", r"2\cdot\sqrt{3}", r"\sqrt{3}\cdot 2"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt3}3", r"\frac13\sqrt{3}"),
        (r"\frac{\sqrt{3}}{3}", r"\sqrt{3}/3", r"\sqrt{\frac13}"),
        (r"\sqrt[3]{5}", "5^{1/3}", r"\sqrt[3]5", r"5^{\frac13}"),
        (r"1+\sqrt{2}", r"\sqrt{2}+1", r"\sqrt{3+2\sqrt{2}}", r"\frac{1}{\sqrt{2}-1}"),
        (r"\frac{-1+\sqrt{5}}{2}", r"\frac{\sqrt{5}-1}{2}", r"-\frac12+\frac{\sqrt5}{2}"),
        (r"11\sqrt2", r"11\sqrt{2}", r"\sqrt{242}"),
        ("-2", r"\sqrt[3]{-8}"),
    ],
    "repeating decimals": [
        (r"\frac{1}{3}", r"0.\overline{3}"),
        (r"\frac{2}{3}", r"0.\overline{6}", r"0.\bar{6}"),
        (r"\frac{1}{6}", r"0.1\overline{6}"),
        (r"0.\overline{42}", r".\overline{42}", r"\frac{14}{33}"),
    ],
    "percent, money": [
        (r"10\%", "10%", "10", r"10 \%", r"10.0\%", r"10\text{ percent}"),
        ("25", r"25\%", "25%"),
        (r"12.5\%", "12.5", r"12\frac12\%"),
        (r"\$18.90", "18.90", "18.9", r"\$ 18.90", "$18.90", r"18.90\text{ dollars}"),
        ("36", r"\$36", "$36", r"\$36.00", r"36\text{ dollars}", "36 dollars"),
        (r"\$1,\!250", "1250", r"\$1,250", "1,250", r"\$1250.00"),
    ],
    "units": [
        ("5", r"5\text{ cm}", r"5\,\text{cm}", r"5\mathrm{~cm}", "5 cm", r"5\text{ units}"),
        ("24", r"24\text{ cm}^2", r"24\text{ square units}", r"24\,\mathrm{cm}^2", r"24\mbox{ cm}"),
        (r"864 \mbox{ inches}^2", "864", r"864\text{ inches}^2", r"864\text{ in}^2"),
        (r"12\text{ miles per hour}", "12", r"12\text{ mph}", "12 miles per hour"),
        (r"3.5\text{ hours}", "3.5", r"\frac72", r"\frac{7}{2}\text{ hours}"),
        ("42", r"42\text{ students}", "42 students", r"42\text{ ways}"),
        (r"15\text{ minutes}", "15", "15 minutes"),
        (r"9\pi", r"9\pi\text{ cm}^3", r"9\pi \text{ cubic centimeters}"),
    ],
    "degrees": [
        (r"36^\circ", "36", r"36^{\circ}", r"36\,^\circ", r"36\text{ degrees}", "36 degrees"),
        ("120", r"120^\circ", r"120^{\circ}", "120°"),
        (r"22.5^\circ", "22.5", r"\frac{45}{2}", r"\frac{45}{2}^\circ"),
        (r"\sin 20^\circ", r"\sin(20^\circ)", r"\sin 20^{\circ}"),
    ],
    "thousands": [
        ("1000", "1,000", r"1,\!000", "1{,}000", r"1\,000"),
        ("1234567", "1,234,567", r"1,\!234,\!567", "1{,}234{,}567"),
        (r"10,\!080", "10080", "10,080", "10{,}080"),
        ("58,500", "58500", r"58,\!500"),
        ("12345.67", "12,345.67"),
    ],
    "intervals, unions": [
        (r"(-\infty,3]", r"\left(-\infty,3\right]", r"(-\infty, 3]", r"( -\infty , 3 ]"),
        (r"(-\infty,3]", r"x\in(-\infty,3]", r"x \in \left(-\infty, 3\right]"),
        ("[-2,7]", r"x \in [-2,7]", r"\left[-2,7\right]", "[-2, 7]", r"\left[ -2, 7 \right]"),
        (r"x \in [-2,7]", "[-2,7]"),
        (r"(0,\infty)", r"(0,+\infty)", r"\left(0,\infty\right)", r"(0, \infty)"),
        (r"\left[\frac{1}{2},2\right)", "[1/2,2)", "[0.5,2)", r"\left[\dfrac{1}{2}, 2\right)"),
        (r"(-\sqrt{2},\sqrt{2})", r"(-\sqrt2,\sqrt2)", r"\left(-\sqrt{2}, \sqrt{2}\right)"),
        ("(0,1]", r"\bigl(0,1\bigr]"),
        (r"(-\infty,-1)\cup(3,\infty)", r"(-\infty, -1) \cup (3, \infty)"),
        (r"(-\infty,-1)\cup(3,\infty)", r"\left(-\infty,-1\right)\cup\left(3,\infty\right)"),
        (r"(-\infty,-1)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,-1)"),
        (r"(-\infty,-1)\cup(3,\infty)", r"x\in(-\infty,-1)\cup(3,+\infty)"),
        (r"[-1,0)\cup(0,1]", r"(0,1]\cup[-1,0)", r"[-1, 0) \cup (0, 1]"),
        (r"(-\infty,-2)\cup(-2,2)\cup(2,\infty)", r"(2,\infty)\cup(-2,2)\cup(-\infty,-2)"),
    ],
    "tuples": [
        ("(3,-1)", "(3, -1)", r"\left(3,-1\right)", "(x,y)=(3,-1)", "( 3 , -1 )", r"(3,\,-1)"),
        (r"\left(\frac{3}{5},-\frac{4}{5}\right)", "(3/5,-4/5)", "(0.6,-0.8)"),
        (r"\left(\frac{3}{5},-\frac{4}{5}\right)", r"\left(\dfrac{3}{5}, \dfrac{-4}{5}\right)"),
        (r"\left(3,\frac{\pi}{2}\right)", r"(3,\pi/2)", r"\left(3, \dfrac{\pi}{2}\right)"),
        ("(1,-2,5)", "(1, -2, 5)", "(x,y,z)=(1,-2,5)", "(a,b,c) = (1,-2,5)"),
        ("(2a,b+1)", "(2a, 1+b)"),
        ("(1,2),(3,4)", "(3,4),(1,2)", r"(1,2)\text{ and }(3,4)", "(1, 2), (3, 4)"),
    ],
    "lists": [
        ("1,2", "1, 2", "2,1", "1 and 2", r"1\text{ and }2", "x=1,x=2", r"2,\,1", "x=1, 2"),
        ("1,-2", "-2, 1", "-2 and 1", r"x = 1 \text{ or } x = -2"),
        ("3, 5, 7", "3,5,7", "7,5,3", "3, 5, and 7", r"3,5\text{ and }7", "3, 5 and 7"),
        (r"\frac12,-3", "-3, 1/2", "0.5, -3", r"-3, \dfrac{1}{2}"),
        (r"1+\sqrt{2},1-\sqrt{2}", r"1-\sqrt2, 1+\sqrt2", r"1+\sqrt{2} \text{ and } 1-\sqrt{2}"),
    ],
    "plus or minus": [
        (r"\pm 2", r"\pm2", "2,-2", "-2, 2", r"x=\pm 2"),
        (r"3\pm\sqrt{2}", r"3+\sqrt{2}, 3-\sqrt{2}", r"3 \pm \sqrt 2", r"x = 3 \pm \sqrt{2}"),
        (r"1+\sqrt{5},1-\sqrt{5}", r"1\pm\sqrt{5}"),
        (r"\frac{1\pm\sqrt{5}}{2}", r"\frac{1+\sqrt5}{2},\frac{1-\sqrt5}{2}"),
    ],
    "sets": [
        (r"\{1,2,3\}", r"\{3,2,1\}", r"\{1, 2, 3\}", r"\left\{1,2,3\right\}", r"\{ 1 , 2 , 3 \}"),
        (r"\{\frac12,-1\}", r"\{-1,0.5\}", r"\{-1, 1/2\}"),
        (r"\{0\}", r"\{ 0 \}", r"\left\{0\right\}"),
        (r"\{(0,1),(2,3)\}", r"\{(2,3),(0,1)\}"),
        (r"\emptyset", r"\varnothing"),
    ],
    "matrices, vectors": [
        (
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
            r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}",
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \\ \end{pmatrix}",
            r"\left(\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right)",
            "\\begin{pmatrix}\n1 & 2 \\\\\n3 & 4\n\\end{pmatrix}",
            r"A = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        ),
        (
            r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}",
            r"\begin{pmatrix}-7\\16\\5\end{pmatrix}",
            r"\begin{bmatrix} -7 \\ 16 \\ 5 \end{bmatrix}",
            r"\mathbf{v} = \begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}",
        ),
        (
            r"\begin{pmatrix} 1/2 & -\frac{\sqrt{3}}{2} \\ \sqrt{3}/2 & 1/2 \end{pmatrix}",
            r"\begin{pmatrix} 0.5 & -\sqrt3/2 \\ \frac{\sqrt3}{2} & \frac12 \end{pmatrix}",
            r"\begin{pmatrix} \frac12 & \frac{-\sqrt3}{2} \\[2pt] \frac{\sqrt3}{2} & \frac12"
            r"\end{pmatrix}",
        ),
        (r"\begin{pmatrix} a+b \\ 2c \end{pmatrix}", r"\begin{pmatrix} b+a \\ 2c \end{pmatrix}"),
    ],
    "complex": [
        ("6+9i", "9i+6", "6 + 9i", "6+9 i", "3(2+3i)"),
        ("2i", "(1+i)^2", "2 i", r"2\cdot i"),
        (r"\frac{1}{2}+\frac{\sqrt{3}}{2}i", r"\frac{1+i\sqrt{3}}{2}", r"e^{i\pi/3}"),
        (r"\frac{1}{2}+\frac{\sqrt{3}}{2}i", r"\cos\frac{\pi}{3}+i\sin\frac{\pi}{3}"),
        ("-i", r"\frac{1}{i}", "-1i"),
        ("1+2i,1-2i", "1-2i, 1+2i", r"1\pm2i", "1+2i and 1-2i"),
    ],
    "polynomials": [
        ("x^2+2x+1", "1+2x+x^2", "(x+1)^2", "x^{2} + 2x + 1", "(x+1)(x+1)", "x(x+2)+1"),
        ("(x-3)(x+5)", "(x+5)(x-3)", "x^2+2x-15", r"\left(x-3\right)\left(x+5\right)"),
        ("-3x^3+4x", "4x-3x^3", "x(4-3x^2)", "-x(3x^2-4)"),
        ("6ab-2b^2", "2b(3a-b)", "6ba-2b^2", "-2b^2+6ab"),
        (r"\frac{x^2-1}{x+2}", r"\frac{(x-1)(x+1)}{x+2}", "(x^2-1)/(x+2)"),
        ("2n^2-n", "n(2n-1)", "2n^{2}-n", "-n+2n^2"),
        ("x^3y^2", "y^2x^3", r"x^3 y^2", r"x^3\cdot y^2"),
        ("4(x+2)^2(x-1)", "4(x-1)(x+2)^2", "(4x-4)(x+2)^2"),
        (r"\frac{3}{x^2}", "3x^{-2}", "3/x^2"),
    ],
    "equations": [
        ("y=2x+3", "y = 2x + 3", "y=3+2x", "2x+3=y", "2x-y+3=0", "y-2x=3"),
        ("5x-7y+11z+4=0", "5x - 7y + 11z + 4 = 0", "11z-7y+5x+4=0"),
        ("(x-1)^2+(y+2)^2=9", "(y+2)^2+(x-1)^2=9", "(x-1)^2+(y+2)^2=3^2", "9=(x-1)^2+(y+2)^2"),
        (r"\frac{x^2}{9}+\frac{y^2}{4}=1", r"\frac{y^2}{4}+\frac{x^2}{9}=1", "x^2/9+y^2/4=1"),
        ("y^2=4x", "4x=y^2", "y^{2} = 4x"),
        (r"y=-\frac{1}{2}x+4", r"y=-\frac{x}{2}+4", r"y=4-\frac12x", "y=-0.5x+4"),
    ],
    "inequalities": [
        ("x<3", "3>x", "x < 3", r"x \lt 3"),
        (r"x\ge -1", r"x\geq-1", r"x \geqslant -1", r"-1\le x", "x>=-1"),
        ("1<x<3", "3>x>1", "1 < x < 3"),
        (r"-2\le x\le 7", r"-2\leq x\leq7", r"7\ge x\ge-2"),
        (r"x\ne 2", r"x\neq 2"),
        (r"x>\frac12", "x>0.5", "x > 1/2"),
    ],
    "ratios, times": [
        ("3:4", "3 : 4", r"3\!:\!4"),
        ("2:3:5", "2 : 3 : 5"),
        (r"1:\sqrt{3}", r"1 : \sqrt3"),
        ("6:30", r"6\!:\!30", r"\text{6:30}"),
        (r"\text{6:30 p.m.}", r"6:30 \text{ p.m.}", "6:30 p.m.", r"6:30\text{ pm}"),
    ],
    "bases": [
        ("2516_8", "2516_{8}", "2516_{ 8 }", "2516 _8"),
        ("110111_2", "110111_{2}", "110111_2."),
        ("321_{5}", "321_5", "$321_5$"),
        ("A7_{16}", r"\text{A7}_{16}"),
    ],
    "choices": [
        (r"\text{(A)}", "A", "(A)", r"\text{A}", r"\textbf{(A)}", r"\mathrm{(A)}", r"\textbf{A}"),
        ("C", r"\text{C}", r"\text{(C)}", "(C)", r"\mathbf{C}"),
        ("A,C", "A, C", "C,A", r"A \text{ and } C"),
    ],
    "words": [
        (r"\text{Evelyn}", "Evelyn", r"\text{ Evelyn}", r"\mathrm{Evelyn}", r"\textbf{Evelyn}"),
        (r"\text{Evelyn}", r"\mbox{Evelyn}", "evelyn", r"\textit{Evelyn}", r"\text{Evelyn}."),
        (r"\text{even}", "even", "Even", r"\text{Even}"),
        (r"\text{neither}", "neither", r"\text{Neither}"),
        (r"\text{Yes}", "Yes", "yes"),
        (r"\text{navy blue}", "navy blue", r"\text{navy}\text{ blue}"),
    ],
    "exponents": [
        ("2^{10}", "1024", r"2^{5}\cdot2^5", "4^5"),
        ("15000", r"1.5\times10^4", r"1.5 \cdot 10^{4}"),
        (r"6.02\times10^{23}", r"6.02\cdot10^{23}"),
        ("3^{-5}", r"\frac{1}{243}", r"\frac{1}{3^5}"),
        ("2^{1994}", "2^{1994}", "4^{997}", r"2\cdot2^{1993}"),
        ("x^{12}", "(x^3)^4", r"x^{3\cdot4}"),
        (r"2^8\cdot3", "768", r"3\cdot2^8", r"2^8 \times 3"),
        (r"\frac{3^{10}-1}{2}", "29524", r"\frac12(3^{10}-1)"),
    ],
    "functions": [
        (r"\sin 2x", r"\sin(2x)", r"2\sin x\cos x", r"\sin{2x}"),
        (r"\sin^2 x", r"(\sin x)^2", r"1-\cos^2 x", r"\sin^{2}x", r"\frac{1-\cos 2x}{2}"),
        (r"\tan x", r"\frac{\sin x}{\cos x}"),
        (r"\cot x", r"\frac{1}{\tan x}", r"\frac{\cos x}{\sin x}"),
        (r"\frac{\pi}{6}", r"\pi/6", r"\frac{1}{6}\pi", r"\dfrac{\pi}{6}"),
        ("e^{2x}", "(e^x)^2", r"e^x\cdot e^x"),
        (r"\ln 4", r"2\ln 2", r"\ln(4)"),
        (r"\log_2 3", r"\log_{2}3", r"\log_2(3)", r"\frac{\ln 3}{\ln 2}"),
        (r"16\pi-8\sqrt{3}", r"-8\sqrt3+16\pi", r"8(2\pi-\sqrt{3})"),
        (r"\frac{1}{2}\cos\theta", r"\frac{\cos\theta}{2}", r"0.5\cos \theta"),
        (r"\frac{1}{e}", "e^{-1}", "1/e"),
        ("|x-1|", "|1-x|", r"\lvert x-1\rvert", r"\left|x-1\right|"),
        (r"\lfloor x\rfloor", r"\left\lfloor x\right\rfloor"),
    ],
    "counting": [
        ("252", r"\binom{10}{5}", r"\frac{10!}{5!5!}", r"\dbinom{10}{5}", r"\frac{10!}{5!\cdot5!}"),
        (r"\binom{10}{5}", "252", r"{10 \choose 5}"),
        ("120", "5!", r"5\cdot4!"),
        ("20!", r"20\cdot19!", "2432902008176640000"),
        (r"\frac{9!}{2}", "181440", "9!/2"),
        ("10!-9!", r"9\cdot9!", "3265920"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
    ],
    "infinity": [(r"\infty", r"+\infty"), (r"-\infty", r"- \infty")],
    "wrappers": [
        ("5", "$5$", r"\(5\)", r"\text{5}", r"\mathbf{5}", "{5}", r"\displaystyle 5", r"\,5\,"),
        ("5", r"\mathrm{5}", "5$", r"5\ ", "~5", r"\[5\]", "\n5\n"),
        (r"\frac{3}{4}", r"$\frac{3}{4}$", r"\displaystyle\frac{3}{4}", r"\(\frac{3}{4}\)"),
        ("x+1", r"x\,+\,1", r"x \; + \; 1", "{x}+{1}", "$x+1$."),
    ],
    "prefixes": [
        ("5", "x=5", "x = 5", "n=5", "k = 5", "a_3=5"),
        ("x=5", "5", "x = 5"),
        ("2x+1", "f(x)=2x+1", "f(x) = 1+2x", "y=2x+1"),
        (r"\frac12", r"p=\frac{1}{2}", r"\theta = \frac{1}{2}", "P = 1/2"),
        ("-4", "x=-4", "x = - 4"),
    ],
    "found later": [
        ("75", r"\angle ABC=75^\circ"), ("5", "AB=5", "|z|=5", "5 months"), ("7", "f(2)=7"),
        (r"\frac{1}{2}", "P(A)=1/2"), ("12", "[ABC]=12"), (r"\frac34", r"x=\frac68=\frac34"),
        ("0.0000672", "6.72e-5"), ("x^2", "x**2"), (r"\cot x", "cot x", r"\operatorname{cot} x"),
        (r"\frac43", "4/3 cups"), ("1101_2", r"1101_{\text{two}}", "1101_{(2)}"),
        (r"\frac13", r"0.\overline3", r"0.\bar 3"), (r"\frac34", "¾"), ("x^4", "x⁴"),
        (r"\sqrt{65}", "√65", "sqrt 65"), (r"n \equiv 3 \pmod{5}", r"n \equiv 3 \pmod 5"),
    ],
    "unicode": [
        ("-3", "−3"),
        (r"4\pi", "4π"),
        (r"\sqrt{2}", "√2", "√{2}"),
        (r"36^\circ", "36°"),
        (r"x\le 3", "x ≤ 3", "x≤3"),
        (r"(-\infty,-1)\cup(3,\infty)", "(-∞,-1)∪(3,∞)"),
        ("15000", "1.5×10^4"),
        (r"\pm 2", "±2"),
    ],
}

# Each row: the reference answer, then predictions that are wrong.
_different = {
    "numbers": [
        ("10000", "9999", "10001", "1000", "100000"),
        ("5", "6", "-5", "50", "55", "4.999", "5.001", "5.0000001"),
        ("0.5", "0.05", "5", "0.51", "-0.5"),
        ("0", "1", "-1", "0.001", "10^{-12}"),
        ("1234567", "1234568", "123456"),
        ("12", "21", "1,2", "-12", "1.2"),
    ],
    "hair's breadth": [
        ("10000000000", "10000000001"),
        ("123456789012345678901", "123456789012345678902"),
        ("1", "1.000000001", "0.9999999999", "1+10^{-10}", "1+10^{-20}"),
        ("2^{1000}", "2^{1000}+1", "2^{1001}"),
        ("3^{2000}", "3^{2000}+1", "2^{2000}", "3^{2001}"),
        ("20!", "20!+1", "2432902008176640001"),
        ("1000!", "1001!", "999!"),
        ("10^{400}", "10^{500}", "10^{401}", r"\infty", "0"),
        ("0", "10^{-400}", "10^{-20}", r"\frac{1}{1000!}"),
        ("x^{1000}", "x^{1001}", "0", "x^{999}"),
        (r"\frac{1}{3}", r"\frac{333333333}{1000000000}"),
    ],
    "rounded": [
        (r"\frac{1}{3}", "0.333", "0.33", "0.3333", "0.3", "0.3333333333", "0.333333333333333"),
        (r"\pi", "3.14", r"\frac{22}{7}", "3.14159", "3.1416", "3.1415926536"),
        (r"\sqrt{2}", "1.414", "1.41", "1.4142", "1.41421356237"),
        (r"\frac{2}{3}", "0.67", "0.667", r"66.7\%", "0.666"),
        ("e", "2.718", "2.71828"),
        (r"\frac{1}{7}", "0.142857", "0.14"),
        (r"2\sqrt{3}", "3.46", "3.464"),
        (r"9\pi", "28.27", "28.3", "28.2743"),
        ("3.14", r"\pi"),
        ("0.33", r"\frac13"),
        ("1.414", r"\sqrt{2}"),
    ],
    "percent, money": [
        (r"10\%", "0.1", r"\frac{1}{10}", r"1\%", r"100\%", r"0.1\%"),
        ("0.1", r"10\%"),
        (r"\frac{1}{4}", r"25\%", r"4\%"),
        ("50", "0.5", r"0.5\%"),
        (r"\$18.90", r"\$18.09", r"\$1890", r"\$18", "19", r"\$189"),
        ("36", r"\$3.60", r"360\text{ cents}", r"\$0.36"),
    ],
    "fractions": [
        (r"\frac{1}{2}", r"\frac{2}{1}", "2", r"\frac13", r"-\frac12", "12", r"\frac{1}{12}"),
        (r"\frac{1}{2}", "1,2", r"\frac{1}{-2}", "1", r"\frac{0}{2}"),
        (r"\frac{13}{4}", r"\frac{1}{3}4", "13", r"\frac{1}{34}", r"\frac{3}{4}", r"\frac{4}{13}"),
        (r"\frac{x}{y}", r"\frac{y}{x}", "xy", "x-y", "x"),
    ],
    "swallowed terms": [
        (r"\frac{x+1}{2}", r"x+\frac12", "x+1/2", r"\frac{x}{2}+1"),
        (r"x+\frac{1}{2}", r"\frac{x+1}{2}", "(x+1)/2"),
        (r"\frac{1+\sqrt{5}}{2}", r"1+\frac{\sqrt{5}}{2}", r"1+\sqrt5/2", r"\frac12+\sqrt5"),
        (r"1+\frac{\sqrt5}{2}", r"\frac{1+\sqrt5}{2}", r"(1+\sqrt5)/2"),
        (r"\frac{a}{b+c}", r"\frac{a}{b}+c", "a/b+c"),
        ("2^{x+1}", "2^x+1", "2^{x}+1"),
        (r"\sqrt{x+1}", r"\sqrt{x}+1", r"\sqrt x+1"),
        ("e^{x+y}", "e^x+y"),
        (r"\frac{2}{x-3}", "2/x-3", r"\frac{2}{x}-3"),
        (r"\sin(x+1)", r"\sin(x)+1"),
        ("3(x+2)", "3x+2"),
    ],
    "mixed numbers": [
        (r"\frac{9}{5}", r"1\cdot\frac45", r"\frac45", r"\frac{14}{5}"),
        (r"1\frac45", r"\frac45", "1", r"1\frac54"),
        (r"2\frac{1}{2}", "1", r"2\cdot\frac12", "2.12", r"\frac{21}{2}", r"2\times\frac{1}{2}"),
        ("1", r"2\frac12"),
        ("3", r"6\frac12", "6 1/2"),
        (r"\frac{4}{5}", r"1\frac45", "1 4/5"),
        (r"\frac{14}{5}", "1 4/5"),
        (r"-\frac32", r"-\frac12", r"1\frac12"),
    ],
    "repeating decimals": [
        (r"0.\overline{3}", "0.3", "0.33", r"\frac{3}{10}", r"0.\overline{4}", "3"),
        (r"0.\overline{12}", r"0.1\overline{2}", "0.12", r"0.\overline{21}", r"0.\overline{120}"),
    ],
    "lists": [
        ("1,-2", "1", "-2", "1,2", "-1,2", "1,-2,3", "1,-2,0", "1,-2,-2", "-1,-2", "1,1"),
        ("1", "1,-2", "1, 2", r"1\text{ and }2", "1,1"),
        ("3,5,7", "3,5", "5,7", "3,5,7,9", "3,5,8", "3,5,5,7", "357", "15"),
        ("1,2", "12", "1.2", "1,2,3", "3", "x=1", "x=1,x=3", "2"),
        (r"1+\sqrt{2},1-\sqrt{2}", r"1+\sqrt2", r"1-\sqrt2", "2", r"1+\sqrt2,1+\sqrt2"),
        ("2,2,3", "2,3", "2,3,3"),
    ],
    "plus or minus": [
        (r"\pm 2", "2", "-2", "2,2", "4", r"\pm 4", "0"),
        ("2", r"\pm 2", r"\pm2"),
        (r"3\pm\sqrt{2}", r"3+\sqrt2", r"3-\sqrt2", r"\pm3+\sqrt2", r"2\pm\sqrt3", r"-3\pm\sqrt2"),
        (r"3+\sqrt{2}", r"3\pm\sqrt2"),
    ],
    "hedges": [
        ("5", "5 or 6", r"5\text{ or }6", "6 or 5", "5, 6", "4=5", r"\text{5 or 6}", "5;6"),
        ("5", "5 and 6", r"\{5,6\}", "(5,6)", r"5\pm1", "-5 or 5", "5/6", r"\text{not }5"),
        ("5", "x>5", r"x\ne5", "x=5,x=6", "x=5 or x=6", r"5\text{ or }5.5"),
        ("A", "A or B", "A, B", r"\text{A or B}", r"\text{(A) or (B)}", r"A\text{ and }B", "ABCD"),
        (r"\text{even}", r"\text{even or odd}", r"\text{not even}", "even, odd"),
        (r"\text{Evelyn}", "Evelyn or Angela", "Evelyn, Angela", r"\text{not Evelyn}"),
        (r"\frac{1}{2}", r"\frac12\text{ or }\frac13", r"\frac12,\frac13"),
        ("[-2,7]", r"[-2,7]\text{ or }(-2,7)"),
    ],
    "intervals, unions": [
        (r"(-\infty,3]", r"(-\infty,3)", r"(\infty,3]", r"(-\infty,-3]", r"(3,\infty)", "3"),
        ("[-2,7]", "(-2,7)", "[-2,7)", "(-2,7]", "[7,-2]", "[-7,2]", r"\{-2,7\}", "-2,7", "[-2,8]"),
        ("(1,3)", "[1,3]", "(1,3]", "[1,3)", "(3,1)"),
        (r"x\in[-2,7]", r"x\in(-2,7)", r"x\notin[-2,7]"),
        (r"(-\infty,-1)\cup(3,\infty)", r"(-\infty,-1]\cup(3,\infty)", r"(-\infty,-1)", "(-1,3)"),
        (r"(-\infty,-1)\cup(3,\infty)", r"(-\infty,-1)\cup[3,\infty)", r"(3,\infty)"),
        (r"(-\infty,-1)\cup(3,\infty)", r"(-\infty,-1)\cap(3,\infty)", r"(-\infty,\infty)"),
        (r"(-\infty,-1)\cup(3,\infty)", r"(-\infty,3)\cup(-1,\infty)"),
        (r"[-1,0)\cup(0,1]", "[-1,1]", r"(-1,0)\cup(0,1)", r"[-1,0)\cup(0,1]\cup(1,2]"),
        ("(0,1)", r"(0,1)\cup(2,3)"),
    ],
    "tuples": [
        ("(3,-1)", "(-1,3)", "(3,1)", "(-3,1)", "(3,-1,0)", "(3)", "3", r"\frac{3}{-1}", "2"),
        ("(3,-1)", "(3,-1),(0,0)", "(y,x)=(-1,2)"),
        ("(1,-2,5)", "(1,5,-2)", "(-2,1,5)", "(1,-2)", "(1,-2,5,0)", "(-1,2,-5)"),
        ("(1,2),(3,4)", "(2,1),(4,3)", "(1,2)", "(1,3),(2,4)", "(1,2,3,4)", "(1,4),(3,2)"),
        (r"\left(3,\frac{\pi}{2}\right)", r"\left(3,-\frac{\pi}{2}\right)", "(3,90)"),
        (r"\left(3,\frac{\pi}{2}\right)", r"\left(\frac{\pi}{2},3\right)"),
        ("(0,0)", "0", "(0,0,0)", "(0)"),
    ],
    "sets": [
        (r"\{1,2,3\}", r"\{1,2\}", r"\{1,2,3,4\}", r"\{1,2,4\}", r"\{1,2,2,3\}", r"\{1,1,2,3\}"),
        (r"\{1,2,3\}", "[1,3]", "6", r"\{\}"),
        (r"\{1,2\}", r"\{1,1,2\}", r"\{1,1\}", r"\{1\}", "3"),
        (r"\emptyset", "0", r"\{0\}", r"\infty"),
        (r"\{0\}", r"\emptyset", r"\{0,0\}"),
        (r"\{(0,1),(2,3)\}", r"\{(1,0),(3,2)\}", r"\{0,1,2,3\}"),
    ],
    "matrices, vectors": [
        (
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}",
            r"\begin{pmatrix} 3 & 4 \\ 1 & 2 \end{pmatrix}",
            r"\begin{pmatrix} 2 & 1 \\ 4 & 3 \end{pmatrix}",
            r"\begin{pmatrix} 1 & 2 \\ 3 & -4 \end{pmatrix}",
            r"\begin{pmatrix} 1 & 2 \end{pmatrix}",
            r"\begin{pmatrix} 1 & 2 & 3 & 4 \end{pmatrix}",
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \\ 0 & 0 \end{pmatrix}",
            r"\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}",
            "-2",
            r"-\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            r"2\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        ),
        (
            r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}",
            r"\begin{pmatrix} 16 \\ -7 \\ 5 \end{pmatrix}",
            r"\begin{pmatrix} -7 \\ 5 \\ 16 \end{pmatrix}",
            r"\begin{pmatrix} 7 \\ -16 \\ -5 \end{pmatrix}",
            r"\begin{pmatrix} -7 \\ 16 \end{pmatrix}",
            r"\begin{pmatrix} -7 & 16 & 5 \end{pmatrix}",
        ),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\frac{1}{2}", r"\binom{2}{1}", "12"),
    ],
    "complex": [
        ("6+9i", "6-9i", "9+6i", "-6+9i", "6+9", "15", "15i", "6", "9i", "6+9i,6-9i"),
        ("2i", "-2i", "2", "2+i", r"\frac{2}{i}"),
        ("1+2i,1-2i", "1+2i", "2+i,2-i", r"1\pm2", r"1\pm i"),
        (r"\frac{1}{2}+\frac{\sqrt{3}}{2}i", r"\frac{\sqrt3}{2}+\frac12i", r"e^{i\pi/6}"),
        (r"\frac{1}{2}+\frac{\sqrt{3}}{2}i", r"\frac12-\frac{\sqrt3}{2}i", r"e^{\pi/3}"),
    ],
    "polynomials": [
        ("x^2+2x+1", "x^2-2x+1", "x^2+2x", "x^2+2x+2", "x^2+2x-1", "2x^2+2x+1", "(x-1)^2", "x+1"),
        ("x^2+2x+1", "y^2+2y+1", "x^2+1", "(x+1)^3", "4"),
        ("(x-3)(x+5)", "(x+3)(x-5)", "(x-3)(x-5)", "(x-3)+(x+5)", "x-3,x+5"),
        ("6ab-2b^2", "6ab+2b^2", "6ab-2a^2", "6a-2b^2", "6ab-2b", "6xy-2y^2"),
        ("2n^2-n", "2n^2+n", "2n-n^2", "2m^2-m"),
        ("x^3y^2", "x^2y^3", "x^6y", "(xy)^5", "x^3+y^2"),
        ("3x", "3y", "3", "x^3", "x+3", "3x+1"),
        (r"\frac{x^2-1}{x+2}", r"\frac{x+2}{x^2-1}", "x^2-1", r"\frac{x^2+1}{x+2}"),
        ("2x+1", "2y+1", "2x-1", "f(x)=2x", "2x+1=0", "-2x-1"),
    ],
    "radicals": [
        (r"2\sqrt{3}", r"3\sqrt2", r"\sqrt6", r"\sqrt3", r"-2\sqrt3", r"2\sqrt[3]{3}"),
        (r"2\sqrt{3}", r"\sqrt{23}", "6", r"2+\sqrt3"),
        (r"\sqrt[3]{5}", r"\sqrt5", r"3\sqrt5", r"\sqrt[5]{3}", "5^3", r"\frac53", r"\sqrt[4]{5}"),
        (r"\sqrt{2}+3", r"\sqrt{2+3}", r"3\sqrt{2}", r"\sqrt2-3"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{\sqrt3}{2}", r"\sqrt3", r"\frac{3}{\sqrt3}", "1"),
    ],
    "degrees, units": [
        (r"30^\circ", r"\frac{\pi}{6}", r"60^\circ", r"-30^\circ", r"\pi/6"),
        (r"\frac{\pi}{6}", r"30^\circ", "30", r"\frac{\pi}{3}", r"\frac16", r"-\frac{\pi}{6}"),
        (r"\sin 20^\circ", r"\cos 20^\circ", r"\sin 40^\circ", r"20^\circ"),
        (r"5\text{ m}", r"50\text{ cm}", r"0.5\text{ km}", r"5000\text{ cm}"),
        (r"2\text{ hours}", r"60\text{ minutes}", r"20\text{ minutes}", "200 minutes"),
        (r"24\text{ cm}^2", "24^2", "576", "242"),
        (r"5\text{ cm}", r"6\text{ cm}", r"\text{cm}", r"x\text{ cm}", "5x"),
    ],
    "thousands": [
        ("1000", "10,000", "100", "1,001"),
        ("1,234", "1,2,3,4", "1", "234", "12,34"),
        ("58,500", "58,5", "58,50", "585,000", "58.5"),
        ("1234", "12,34", "1,23,4"),
    ],
    "equations": [
        ("y=2x+3", "y", "2x", "y=2x", "y=2x-3", "y=-2x+3", "y=3x+2", "x=2y+3", "2x+3=0", "3"),
        ("y=2x+3", "0=0", "y=y", "y<2x+3", r"y\ge2x+3", "y=2x+3,y=0", "x=x"),
        ("x^2+y^2=9", "x^2+y^2=3", "x^2+y^2", "x^2-y^2=9", "x^2+y^2=-9", "x+y=3", "9"),
        ("x^2+y^2=9", "x^2+y^2<9", "x^2+y^2=9+x", "0=0", "9=9"),
        ("(x-1)^2+(y+2)^2=9", "(x+1)^2+(y-2)^2=9", "(x-2)^2+(y+1)^2=9", "(x-1)^2+(y+2)^2=3"),
        (r"\frac{x^2}{9}+\frac{y^2}{4}=1", r"\frac{x^2}{4}+\frac{y^2}{9}=1"),
        (r"\frac{x^2}{9}+\frac{y^2}{4}=1", r"\frac{x^2}{9}-\frac{y^2}{4}=1", "1"),
        ("5x-7y+11z+4=0", "5x-7y+11z-4=0", "5x-7y+11z=0", "5x+7y+11z+4=0", "0"),
        ("y^2=4x", "x^2=4y", "y^2=-4x", "y=4x", r"y=2\sqrt{x}", "4x"),
        ("5", "2x=5", "x^2=5", "x+1=5", "5=6", "-x=5", "5=4", "x=5,y=6", "x+y=5"),
        ("x=5", "y=5", "x=-5", "x=6", "x>5", "x"),
    ],
    "inequalities": [
        ("x<3", "x>3", r"x\le3", "x<-3", "x=3", "3<x", "y<3", "3", "x<4", r"x\ne3"),
        (r"x\ge -1", r"x\le-1", "x>-1", r"x\ge1", r"-1\ge x", "-1"),
        ("1<x<3", r"1\le x\le3", "1<x", "x<3", "1<x<4", "3<x<1", r"1<x\le3", "1<y<3"),
        (r"-2\le x\le 7", "-2<x<7", r"-7\le x\le2", r"x\le7", r"-2\le x"),
    ],
    "ratios, times": [
        ("3:4", "4:3", "3:5", "3:4:5", "7", "3,4", r"\frac43"),
        ("2:3:5", "2:5:3", "5:3:2", "2:3"),
        ("6:30", "6:03", "7:30", "12:60", "1:5", "630"),
        (r"\text{6:30 p.m.}", r"\text{6:30 a.m.}", r"\text{5:30 p.m.}", "6"),
    ],
    "bases": [
        ("2516_8", "2516", "2516_9", "2516_{10}", "2516_7", "2516_{16}", "2561_8", "25168"),
        ("2516_8", "2516^8", "2516_{88}", r"2516\cdot8"),
        ("110111_2", "110111", "110111_3", "110110_2", "11011_2"),
        ("321_{5}", "321", "321_6", "-321_5", "123_5"),
    ],
    "choices, words": [
        ("A", "B", "(B)", r"\text{(B)}", "1"),
        (r"\text{(C)}", "A", r"\text{(D)}", "(A),(C)"),
        (r"\text{late}", "teal", r"\text{teal}", "tale", r"\text{lat}"),
        (r"\text{evil}", "live", r"\text{vile}", r"\text{devil}"),
        (r"\text{even}", r"\text{odd}", "e", "neve"),
        (r"\text{No}", r"\text{Yes}", r"\text{On}"),
        (r"\text{Evelyn}", r"\text{Angela}", "E"),
        (r"\text{ellipse}", r"\text{hyperbola}", r"\text{circle}", r"\text{ellipses and circles}"),
    ],
    "exponents": [
        ("2^{10}", "2^{11}", "10^2", "20", r"2\cdot10", "1023", "2^{-10}", "2^1"),
        ("3^{-5}", "-3^5", "3^5", "-243", r"-\frac{1}{243}"),
        (r"1.5\times10^4", r"1.5\times10^5", r"1.5\times10^{-4}", "1.5", "15"),
        ("x^{12}", "x^{7}", "12x", "x^{-12}"),
        ("-4", "(-2)^2", "4"),
        ("4", "-2^2"),
        ("2^{3^2}", "(2^3)^2", "64"),
        ("2^{1994}", "2^{1993}", "1994^2", "4^{1994}", "2^{1994}-1"),
        (r"\frac{3^{10}-1}{2}", r"\frac{3^{10}+1}{2}", "3^{10}-1", r"3^{10}-\frac12"),
    ],
    "functions": [
        (r"\sin 2x", r"2\sin x", r"\sin^2x", r"\cos2x", r"\sin x", r"\sin 2y", r"\sin(x^2)"),
        (r"\sin^2 x", r"\cos^2x", r"\sin x", r"1+\cos^2x", r"\sin 2x"),
        (r"\ln 4", r"\ln 2", "4", r"\ln 8", r"(\ln2)^2", "e^4"),
        (r"\log_2 3", r"\log_3 2", r"\log_2 6", r"\frac{\ln2}{\ln3}", "3", r"\log_2 3+1"),
        ("e^{2x}", "e^{x}", "e^{x^2}", "2e^x", "e^2x"),
        (r"16\pi-8\sqrt{3}", r"16\pi+8\sqrt3", r"8\pi-16\sqrt3", r"16-8\sqrt3", r"16\pi"),
        (r"\tan x", r"\cot x", r"-\tan x", r"\tan y", r"\arctan x"),
        (r"4\pi", "4", r"\pi", r"2\pi", r"4\pi^2", r"-4\pi", r"4+\pi"),
        ("|x-1|", "x-1", "1-x", "|x+1|", "|x|-1"),
        (r"\lfloor x\rfloor", "x", r"\lceil x\rceil", r"\lfloor x\rfloor+1"),
    ],
    "counting": [
        (r"\binom{10}{5}", r"\binom{10}{4}", r"\binom{5}{10}", r"\frac{10}{5}", "2", "10^5"),
        ("5!", "5", "4!", "6!", "5!!", "24"),
        ("252", r"\binom{10}{3}", r"\frac{10!}{5!}", r"\frac{10!}{5!+5!}"),
        (r"\binom{n}{2}", r"\frac{n}{2}", r"\frac{n(n+1)}{2}", r"\binom{2}{n}"),
    ],
    "infinity, undefined": [
        (r"\infty", r"-\infty", "0", "1", r"\infty,-\infty", "10^{400}"),
        (r"-\infty", r"\infty", r"\pm\infty"),
        ("5", r"\infty", r"\frac{1}{0}", r"\frac{0}{0}", "nan", "inf", "0/0"),
        ("x^2+1", "nan", r"\frac{0}{0}", r"\infty", r"\frac{x}{x-x}"),
    ],
    "empty": [
        ("5", "", " ", "{}", r"\text{}", "$$", "()", "[]", r"\{\}", ",", "=", "-", "+"),
        ("5", r"\boxed{}", r"\frac{}{}", r"\sqrt{}", "^", "_", "x", "\\", r"\,", "."),
        (r"\text{Evelyn}", "", r"\text{}", r"\text"),
        (r"\frac12", "", r"\frac", "/"),
        ("0", "", "{}", r"\text{}", "()", "-", "+"),
    ],
    "found later": [
        (r"\pi", "10^{400}", "1000!"), (r"\{\pi,2\}", r"\{10^{400},1\}"), ("|x+3|", "x+3"),
        (r"\sqrt{x^2+6x+9}", "x+3"), ("|x-50|", "50-x"), (r"|\sin x|", r"\sin|x|"),
        ("5", *(rf"5\text{{ {word}}}" for word in "tens thousands millions billion".split())),
        ("5", *(rf"5\text{{ {word}}}" for word in "hundredths tenth twelfths dozens".split())),
        ("5", *(rf"5\text{{ {word}}}" for word in "wrong never inverse modulo twice".split())),
        ("5", *(rf"5\text{{ {word}}}" for word in "squared factorials repeating noon".split())),
        ("x^2+2", "x^2 + 2 xyz"), ("5", "5 abc", "5...", "AB=6", r"\not=5", r"\sim=5"),
        ("2", "2 theta", "2 csc theta", "x=1=2", "2=3"), ("20", r"20\%^2"), ("A=5", "AB=5"),
        (r"\tan 3", r"\cot^{-1}3"), (r"\overline{AB}", r"\overline{ab}"), ("-4", "1–5"),
        (r"\sum_{n=1}^{N}n", r"\sum_{N=1}^{n}N"), ("0.333", "0.333..."), ("5", r"x\ne 5"),
    ],
    "nonsense": [
        ("5", "__import__('os')", "True", "5 if True else 0", "len('12345')", "lambda: 5"),
        ("5", r"\text{the right answer}", r"\text{any number}", "answer", r"\square", "?", "*"),
        ("5", r"\boxed{6}", r"\text{see above}", "5x", "5^x", r"\frac{5}{x}", "5 apples or 6"),
        ("1", "True", "1==1", "x/y"),
        ("0", "False", "None", "x", "0x+1"),
        ("x", "y", "2x", "1", "-x", "x^1+1"),
    ],
}


def pairs(rows):
    return {
        name: [(prediction, row[0]) for row in group for prediction in row[1:]]
        for name, group in rows.items()
    }


EQUAL = pairs(_equal)
DIFFERENT = pairs(_different)

_said = "Final Answer: The final answer is {}. I hope it is correct."
_long = "First we note that 2 + 2 = 4, so nothing is settled. " * 2000

# (response, reference answer, reward)
RESPONSES = {
    "one box": [
        (r"The answer is \boxed{5}.", "5", 1.0),
        (r"So $x = \boxed{5}$.", "5", 1.0),
        (r"\[\boxed{\frac{1}{2}}\]", r"\frac{1}{2}", 1.0),
        (r"Hence $\boxed{\sqrt{\frac{3}{4}}}$", r"\frac{\sqrt{3}}{2}", 1.0),
        (r"$$\boxed{x = 5}$$", "5", 1.0),
        (r"It is $\boxed{5\text{ cm}}$ long.", "5", 1.0),
        (r"\boxed{\text{(A)}}", r"\text{(A)}", 1.0),
        (r"Answer: \boxed{A}", r"\text{(A)}", 1.0),
        ("\\boxed{\n  5\n}", "5", 1.0),
        (r"We get \boxed{\{1,2\}}.", r"\{2,1\}", 1.0),
        (r"We get $\boxed{\left\{1, 2\right\}}$.", r"\{1,2\}", 1.0),
        (r"$\boxed{(-\infty,3]}$", r"(-\infty,3]", 1.0),
        (r"$\boxed{\begin{bmatrix}1\\2\end{bmatrix}}$", r"\begin{bmatrix}1\\2\end{bmatrix}", 1.0),
        (r"\boxed{5}}", "5", 1.0),
        (r"\boxed{5}", " 5 ", 1.0),
        (_long + r"\boxed{5}", "5", 1.0),
        (r"\boxed{5}" + "\n" + _long, "5", 1.0),
        (r"**Final Answer:** $\boxed{5}$", "5", 1.0),
        (r"The answer is \boxed{6}.", "5", 0.0),
        (r"\boxed{\frac{1}{2}}", "1", 0.0),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{3}", 0.0),
    ],
    "text beside the box": [
        (r"The answer is 5, that is \boxed{6}.", "5", 0.0),
        (r"\boxed{6} Actually, no: the answer is 5.", "5", 0.0),
        (r"\boxed{5} Please check this, it might be 6.", "5", 1.0),
        (r"5 5 5 5 \boxed{\text{see above}}", "5", 0.0),
        (r"$5$. \boxed{\text{answer}}", "5", 0.0),
        (r"\boxed{5 \text{ or } 6}", "5", 0.0),
        (r"\boxed{5, 6}", "5", 0.0),
        (r"\boxed{5}6", "56", 0.0),
        (r"1\boxed{5}", "15", 0.0),
    ],
    "several boxes": [
        (r"First \boxed{4}, then \boxed{5}.", "5", 1.0),
        (r"First \boxed{5}, then \boxed{4}.", "5", 0.0),
        (r"\boxed{5} or \boxed{6}", "5", 0.0),
        (r"\boxed{5} and \boxed{6}", "5,6", 0.0),
        (r"\boxed{1}\boxed{2}\boxed{3}\boxed{5}", "5", 1.0),
        (r"\boxed{1}\boxed{2}\boxed{3}\boxed{5}", "1,2,3,5", 0.0),
        (r"\boxed{5} \boxed{5}", "5", 1.0),
        (r"\boxed{5} ... wait, \boxed{}", "5", 0.0),
        (r"\boxed{\boxed{7}}", "7", 1.0),
        (r"\boxed{\boxed{\frac{1}{2}}}", r"\frac12", 1.0),
        (r"\boxed{\boxed{6}}", "5", 0.0),
        (r"\boxed{\boxed{}}", "5", 0.0),
    ],
    "empty or unclosed": [
        ("", "5", 0.0),
        ("", "", 0.0),
        ("   \n", "", 0.0),
        (r"\boxed{}", "5", 0.0),
        (r"\boxed{}", "", 0.0),
        (r"\boxed{ }", "", 0.0),
        (r"$\boxed{}$ 5", "5", 0.0),
        (r"\boxed{5", "5", 0.0),
        (r"\boxed{\frac{1}{2}", r"\frac{1}{2}", 0.0),
        (r"The answer is $\boxed{5$.", "5", 0.0),
        (r"\boxed{4} and \boxed{5", "5", 0.0),
        (r"\boxed{\boxed{5", "5", 0.0),
        (r"\boxed", "5", 0.0),
        (r"\boxed{", "5", 0.0),
        (r"\boxed}5{", "5", 0.0),
        ("\\boxed{" * 50 + "5", "5", 0.0),
    ],
    "no box": [
        ("5", "5", 0.0),
        ("The answer is 5.", "5", 0.0),
        ("$5$", "5", 0.0),
        ("x = 5", "5", 0.0),
        ("boxed{5}", "5", 0.0),
        ("I hope it is correct: 5", "5", 0.0),
        (_long, "4", 0.0),
    ],
    "Final Answer line": [
        (_said.format("$5$"), "5", 1.0),
        (_said.format("5"), "5", 1.0),
        ("We add.\n" + _said.format("$5$"), "5", 1.0),
        (_said.format("$5$") + "\n\nLet me know if 6 is what you meant.", "5", 1.0),
        (_said.format("$5$") + "\n" + _long, "5", 1.0),
        (_said.format(r"$\frac{1}{2}$"), "0.5", 1.0),
        (_said.format("$3.5$"), "3.5", 1.0),
        (_said.format("3.5"), "3.5", 1.0),
        (_said.format("3.5"), "3", 0.0),
        (_said.format("$(3, -1)$"), "(3,-1)", 1.0),
        (_said.format("$1, 2$"), "1,2", 1.0),
        (_said.format("$x = 5$"), "5", 1.0),
        (_said.format(r"$\text{Evelyn}$"), r"\text{Evelyn}", 1.0),
        (_said.format(r"$\$18.90$"), r"\$18.90", 1.0),
        (_said.format(r"$36^\circ$"), "36", 1.0),
        (_said.format(r"$\boxed{5}$"), "5", 1.0),
        (_said.format(r"\boxed{5}"), "5", 1.0),
        (_said.format(r"$\boxed{6}$"), "5", 0.0),
        (r"So $\boxed{5}$." + "\n" + _said.format("$5$"), "5", 1.0),
        (r"So $\boxed{6}$." + "\n" + _said.format("$6$"), "5", 0.0),
        (_said.format("$4$") + "\n" + _said.format("$5$"), "5", 1.0),
        (_said.format("$5$") + "\n" + _said.format("$4$"), "5", 0.0),
        (_said.format("$6$"), "5", 0.0),
        (_said.format("$-5$"), "5", 0.0),
        (_said.format("$5$ or $6$"), "5", 0.0),
        (_said.format("$5$ or $6$"), "6", 0.0),
        (_said.format("5 or 6"), "5", 0.0),
        (_said.format("$5, 6$"), "5", 0.0),
        (_said.format("$$"), "5", 0.0),
        (_said.format("$$"), "", 0.0),
        (_said.format(""), "5", 0.0),
        (_said.format("$answer$"), "5", 0.0),
        ("The sum is 5. " + _said.format("$6$"), "5", 0.0),
    ],
}

# Strings that hang, crash or fool graders; none of them is equal to 5, 1/2 or x^2+1.
BAIT = {
    "binomials of binomials": r"\binom{" * 5 + "x" + "}{20}" * 5,
    "binomial of a power": r"\binom{\binom{x^{300}}{20}}{20}",
    "bare box": r"\boxed " + "1" * 100_000 + "x",
    "power tower": "9^{9^{9^{9^9}}}",
    "power tower, plain": "9^9^9^9^9^9^9",
    "python powers": "9**9**9**9",
    "huge base": "(10^{1000})^{10^{1000}}",
    "negative tower": "2^{-9^{9^{9}}}",
    "tower of sums": "(2^{100000}+1)^{100000}",
    "complex tower": "i^{i^{i^{9^{9^9}}}}",
    "repeated squares": "(" * 60 + "99" + ")^2" * 60,
    "factorial": "999999999!",
    "factorials stacked": "9!!!!!!!!!!",
    "factorial of factorial": "((9!)!)!",
    "factorial of a decimal": "(-0.5)!",
    "factorial of a letter": "x!!!!!!!!",
    "double factorials": "100000!/99999!",
    "binomial": r"\binom{10000000000}{5000000000}",
    "binomials nested": r"\binom{\binom{\binom{99}{50}}{50}}{50}",
    "negative binomial": r"\binom{-5}{-99999999999}",
    "thousand digits": "7" * 1000,
    "ten thousand digits": "7" * 10000,
    "thousand digits, power": "7" * 400 + "^{" + "7" * 400 + "}",
    "tiny": "0." + "0" * 900 + "1",
    "scientific": "1e999999999",
    "scientific, minus": r"1\times10^{-99999999999999999999}",
    "repeating decimal": r"0.\overline{" + "7" * 900 + "}",
    "long commas": ",".join(["7"] * 5000),
    "long list": ", ".join(str(n) for n in range(450)),
    "long set": r"\{" + ",".join(str(n) for n in range(300)) + r"\}",
    "long union": r"\cup".join(["(0,1)"] * 150),
    "only commas": "," * 900,
    "long pm": r"\pm1" * 300,
    "pm exponential": "+".join([r"\pm" + str(n) for n in range(60)]),
    "pm list": ",".join([r"7\pm1\pm2\pm3\pm4"] * 50),
    "matrix": r"\begin{pmatrix}" + r"\\".join(["7&" * 30 + "7"] * 15) + r"\end{pmatrix}",
    "matrices nested": r"\begin{pmatrix}" * 50 + "7" + r"\end{pmatrix}" * 50,
    "matrix unclosed": r"\begin{pmatrix}" * 66,
    "deep parentheses": "(" * 5000 + "7" + ")" * 5000,
    "parentheses under the cap": "(" * 480 + "7" + ")" * 480,
    "deep braces": "{" * 5000 + "7" + "}" * 5000,
    "braces under the cap": "{" * 480 + "7" + "}" * 480,
    "deep brackets": "[" * 450 + "7" + "]" * 450,
    "mixed brackets": "([{" * 150 + "7" + "}])" * 150,
    "deep fractions": r"\frac{1}{" * 2000 + "7" + "}" * 2000,
    "fractions under the cap": r"\frac{1}{" * 95 + "7" + "}" * 95,
    "fractions, no braces": r"\frac" * 190,
    "deep roots": r"\sqrt{" * 2000 + "7" + "}" * 2000,
    "roots under the cap": r"\sqrt{" * 140 + "7" + "}" * 140,
    "roots, no braces": r"\sqrt" * 190 + "7",
    "deep powers": "x^{" * 300 + "x" + "}" * 300,
    "powers, no braces": "2^" * 400 + "2",
    "minus signs": "-" * 900 + "7",
    "plus signs": "7" + "+" * 900,
    "alternating signs": "+-" * 450 + "7",
    "many absolutes": "|" * 900,
    "absolute nest": "|7-" * 150 + "|" * 150,
    "many equals": "=" * 900,
    "equation chain": "x=" * 400 + "7",
    "inequality chain": "7<" * 400 + "8",
    "ratio chain": "7:" * 400 + "8",
    "and chain": " and ".join(["7"] * 150),
    "or chain": r"\text{ or }".join(["7"] * 60),
    "text chain": r"\text{a}" * 110,
    "text nest": r"\text{" * 150 + "a" + "}" * 150,
    "boxes nested": r"\boxed{" * 3000 + "7" + "}" * 3000,
    "boxes unclosed": r"\boxed{" * 15000,
    "boxes empty": r"\boxed{}" * 12000,
    "final answers": "Final Answer: The final answer is $" * 3000,
    "dollars": "$" * 100000,
    "backslashes": "\\" * 100000,
    "open braces": "{" * 100000,
    "close braces": "}" * 100000,
    "unbalanced": r"\frac{7}{{{2}" + "}" * 3 + "{(",
    "crossed": r"\left(\{7\right)\}",
    "left without right": r"\left" * 180,
    "spaces": " " * 100000 + "7",
    "spaces inside": "7" + " " * 100000 + "x",
    "newlines": "\n" * 100000,
    "100k letters": "x" * 100000,
    "100k of sum": "x+" * 50000 + "x",
    "letters under the cap": "xyzabc" * 160,
    "many variables": "+".join(chr(97 + n % 26) + "_{" + str(n) + "}" for n in range(120)),
    "sum under the cap": "x+" * 490 + "x",
    "product under the cap": "(x+1)" * 190,
    "100k text": r"\text{" + "a" * 100000 + "}",
    "regex bomb": "a" * 50 + "!" + "(a+)+" * 50,
    "regex commas": "1,234" * 180,
    "regex digits": "1" * 500 + "x" + "1" * 490,
    "regex spaces": r"\frac" + " " * 900,
    "regex circles": r"^\circ" * 160,
    "regex tail": "7" + r"\text{ cm}" * 90,
    "null bytes": "7\x00\x00" * 100,
    "controls": "".join(chr(n) for n in range(32)),
    "surrogate": "7\ud800",
    "emoji": "7😀" * 200,
    "right to left": "\u202e7\u202c",
    "combining": "7" + "\u0301" * 900,
    "odd digits": "²³¼①٧७",
    "roman": "Ⅶ",
    "zero width": "7\u200b\u200d\ufeff",
    "dotted I": "İ" * 300,
    "import": "__import__('os').system('sleep 30')",
    "exec": "exec('while True: pass')",
    "comprehension": "[x for x in range(10**12)]",
    "sum of range": "sum(range(10**12))",
    "string product": "'7'*10**12",
    "attribute": "().__class__.__bases__[0].__subclasses__()",
    "format": "{0.__class__}%s%n%(x)s",
    "f-string": "{__import__('os').getpid()}",
    "lambda": "(lambda f: f(f))(lambda f: f(f))",
    "latex loop": r"\def\x{\x}\x",
    "latex input": r"\input{/etc/passwd}",
    "division by zero": r"\frac{1}{0}",
    "zero over zero": r"\frac{0}{x-x}",
    "zero to minus one": "0^{-1}",
    "log of zero": r"\log 0+\ln(-0)",
    "log to base one": r"\log_1 7",
    "log to base zero": r"\log_0 0",
    "tangent at pole": r"\tan\frac{\pi}{2}",
    "zeroth root": r"\sqrt[0]{7}",
    "big root": r"\sqrt[99999999999999]{7}",
    "exponential": "e^{e^{e^{e^{x}}}}",
    "sine of huge": r"\sin(10^{400})",
    "cosh": r"\cosh(10^{10})",
    "infinity less itself": r"\infty-\infty",
    "nan": "nan",
    "sum": r"\sum_{n=1}^{10^{12}} n",
    "integral": r"\int_0^\infty e^{-x^2}\,dx",
    "product": r"\prod_{n=1}^{10^{9}} n",
    "base": "7777_{999999999999999999999}",
    "base zero": "77_0",
    "base minus": "77_{-1}",
    "subscripts": "x" + "_{x" * 200 + "}" * 200,
    "primes": "x" + "'" * 900,
    "subscript clash": "7_2_3_4^5^6^7",
    "lone command": "\\",
    "lone caret": "^^^^",
    "ends in frac": r"7+\frac",
    "ends in sqrt": r"7\sqrt[",
}


class Tally:
    """Results of one category."""

    def __init__(self, name):
        self.name, self.total, self.accepts, self.rejects, self.times = name, 0, 0, 0, []

    def row(self):
        times = self.times or [0.0]
        right = f"{self.total - self.accepts - self.rejects}/{self.total}"
        mean, most = sum(times) / len(times), max(times)
        return f"{self.name:36}{right:>9}{self.accepts:9}{self.rejects:9}{mean:9.3f}{most:9.2f}"


def judge(tally, call, arguments, expected, failures):
    """Run one case; an exception counts as the wrong verdict."""
    start = time.perf_counter()
    try:
        got = call(*arguments)
    except Exception as error:
        got = error
    tally.times.append(1000 * (time.perf_counter() - start))
    tally.total += 1
    if type(got) is type(expected) and got == expected:
        return
    accepted = not expected
    tally.accepts += accepted
    tally.rejects += not accepted
    kind = "raised" if isinstance(got, Exception) else "accepted" if accepted else "rejected"
    shown = "   ".join(a if len(a) < 70 else a[:50] + " … " + a[-15:] for a in arguments)
    failures.append(f"{kind:9} {tally.name}: {shown!r}" + (f" {got!r}" if kind == "raised" else ""))


def tempt(rewards, bait):
    """Every way of grading one bait. Runs in a child that may die."""
    boxed = "\\boxed{" + bait + "}"
    for gold in ("5", r"\frac{1}{2}", "x^2+1", r"\pi", r"\sqrt2 x"):
        if rewards.math_equal(bait, gold) or rewards.math_equal(gold, bait):
            return 2
        if rewards.math_reward(boxed, gold) or rewards.math_reward(bait, gold):
            return 2
    rewards.math_equal(bait, bait)
    rewards.math_equal(bait, bait + "+1")
    rewards.math_equal(bait + ",7", "7," + bait)
    rewards.extract_answer(bait)
    rewards.extract_answer(_said.format("$" + bait + "$"))
    return 0


def survive(rewards, bait, seconds=5):
    """How a forked child fares with one bait: "" if all is well."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(seconds)  # unhandled: it kills even a hang inside C
            resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
            code = tempt(rewards, bait)
        finally:
            os._exit(code)  # an exception leaves code at 1
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "hung" if number == signal.SIGALRM else f"crashed, signal {number}"
    return ("", "raised", "accepted")[os.WEXITSTATUS(status)]


def main():
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import rewards

    failures, tallies = [], []
    for label, table, expected in (("=", EQUAL, True), ("≠", DIFFERENT, False)):
        for name, cases in table.items():
            tallies.append(tally := Tally(f"{label} {name}"))
            for case in cases:
                judge(tally, rewards.math_equal, case, expected, failures)
    for name, cases in RESPONSES.items():
        tallies.append(tally := Tally(f"response: {name}"))
        for response, gold, reward in cases:
            judge(tally, rewards.math_reward, (response, gold), reward, failures)
    tallies.append(tally := Tally("bait (17 calls each, and a fork)"))
    for name, bait in BAIT.items():
        start = time.perf_counter()
        fate = survive(rewards, bait)
        tally.times.append(1000 * (time.perf_counter() - start))
        tally.total += 1
        if fate:
            tally.accepts += 1
            failures.append(f"{fate:9} bait: {name}")

    whole = Tally("all but bait")
    for tally in tallies[:-1]:
        whole.total += tally.total
        whole.accepts += tally.accepts
        whole.rejects += tally.rejects
        whole.times += tally.times
    print(f"{'category':36}{'right':>9}{'accepts':>9}{'rejects':>9}{'mean ms':>9}{'max ms':>9}")
    for tally in [*tallies, whole]:
        print(tally.row())
    print("accepts, rejects: the wrong ones; a bait that hangs, raises or crashes is an accept\n")
    print("\n".join(failures) or "no failures")
    return int(any(tally.accepts for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
