"""Rows made by hand in the columns of the published benchmarks, with answers to them that are right and wrong.

A picture is one of the forms that readers give: a PIL image, or the {"bytes", "path"} of an undecoded one.
"""

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

PICTURE = Image.new("RGB", (28, 28), "white")


def stored(picture=PICTURE):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": "1.png"}


@dataclass(frozen=True)
class Case:
    """A row, what its example has to be, and completions with the verdicts they deserve."""

    name: str
    adapter: str
    row: dict[str, Any]
    verifier: str
    reference: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    category: str = ""
    images: int = 1
    says: tuple[str, ...] = ()


def mathvista(**columns):
    metadata = {"split": "testmini", "language": "english", "img_width": 28, "img_height": 28, "source": "GeoQA+"}
    metadata |= {"category": "math-targeted-vqa", "task": "geometry problem solving", "context": "geometry diagram"}
    metadata |= {"grade": "high school", "skills": ["geometry reasoning", "arithmetic reasoning"]}
    row = {"pid": "3", "question": "How wide is angle BOC?", "image": "images/3.jpg", "decoded_image": stored()}
    row |= {"choices": None, "unit": None, "precision": None, "metadata": metadata}
    return row | {"query": f"Hint: own words.\nQuestion: {row['question']}"} | columns


def mathverse(**columns):
    row = {"sample_index": "7", "problem_index": "2", "problem_version": "Text Dominant", "image": PICTURE}
    row |= {"question": "AB is a diameter. What is angle C?\nChoices:\nA:45°\nB:60°\nC:90°\nD:120°", "answer": "C"}
    row |= {"question_type": "multi-choice", "question_for_eval": row["question"], "query_wo": "unused"}
    row["metadata"] = {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry", "subfield": "Angle"}
    row["query_cot"] = f"Please first conduct reasoning, and then answer.\nQuestion: {row['question']}"
    return row | columns


def mmmu_pro(**columns):
    row = {"id": "test_Math_1", "question": "<image 1> Which part of <image 1> is shaded?", "image_1": stored()}
    row |= {f"image_{n}": None for n in range(2, 8)}
    row |= {"options": "['one half', 'one third', \"a baker's dozen\", '$\\\\frac{3}{4}$']", "answer": "D"}
    row |= {"explanation": "", "img_type": "['Diagrams']", "topic_difficulty": "Easy", "subject": "Math"}
    return row | columns


def wemath(**columns):
    row = {"ID": "2steps_12", "split": "testmini", "knowledge concept": "Area of Circles", "key": "2steps_1"}
    row |= {"question": "How large is the circle? ( ) cm²", "option": "A. 3.14;B. 6.28; C. 12.56; E. No correct answer"}
    row |= {"answer": "B", "image_path": stored(), "question number": 23, "knowledge concept description": "..."}
    return row | columns


def dynamath(**columns):
    row = {"id": "1", "question": "What is the period of this function?", "image": "images/1.png"}
    row |= {"decoded_image": stored(), "ground_truth": "2.094", "answer_type": "float"}
    return row | {"subject": "analytic     geometry", "knowledge_level": "high school"} | columns


CASES = [
    Case(
        "mathvista-choice", "mathvista",
        mathvista(question_type="multi_choice", answer_type="text", answer="145°",
                  choices=["135°", "140°", "145°", "150°"]),
        "choice", "C", (r"So \boxed{C}.", r"\boxed{145°}", "The correct option is (C) 145°."), (r"\boxed{B}", "Hm."),
        category="geometry problem solving", says=("How wide is angle BOC?", "(A) 135°\n(B) 140°"),
    ),
    Case(
        "mathvista-integer", "mathvista",
        mathvista(question_type="free_form", answer_type="integer", answer="11", unit="years"),
        "numeric", "11", (r"\boxed{11}", r"\boxed{11 years}"), (r"\boxed{11.4}", r"\boxed{12}"),
        category="geometry problem solving", says=("(Unit: years)",),
    ),
    Case(
        "mathvista-float", "mathvista",
        mathvista(question_type="free_form", answer_type="float", answer="1.2", precision=1.0),
        "numeric", "1.2", (r"\boxed{1.2}", r"\boxed{1.24}", r"\boxed{1.16}"), (r"\boxed{1.3}", r"\boxed{1.14}"),
        category="geometry problem solving", says=("1 decimal place.",),
    ),
    Case(
        "mathvista-list", "mathvista",
        mathvista(question_type="free_form", answer_type="list", answer="[2014, 2016]"),
        "list", "[2014, 2016]", (r"\boxed{[2014, 2016]}", r"\boxed{2014, 2016}"), (r"\boxed{2016, 2014}",),
        category="geometry problem solving",
    ),
    Case(
        "mathvision-choice", "mathvision",
        {"id": "4", "question": "Which number is hidden?\n<image1>", "options": ["A", "B", "C", "D", "E"],
         "image": "images/4.jpg", "decoded_image": PICTURE, "answer": "D", "solution": None, "level": 1,
         "subject": "counting"},
        "choice", "D", (r"\boxed{D}", r"\boxed{\text{(D)}}"), (r"\boxed{A}",), category="counting",
        says=("Which number is hidden?",),
    ),
    Case(
        "mathvision-free", "mathvision",
        {"id": "9", "question": "What is the ratio?", "options": [], "image": "images/9.jpg",
         "decoded_image": stored(), "answer": r"\frac{1}{2}", "level": 5, "subject": "metric geometry - area"},
        "math", r"\frac{1}{2}", (r"\boxed{1/2}", r"\boxed{0.5}"), (r"\boxed{2}",), category="metric geometry - area",
    ),
    Case(
        "mathverse-choice", "mathverse", mathverse(),
        "choice", "C", (r"\boxed{C}", r"\boxed{90°}", "the answer is C"), (r"\boxed{A}", r"\boxed{60°}"),
        category="Text Dominant", says=("AB is a diameter.",),
    ),
    Case(
        "mathverse-vision-only", "mathverse", mathverse(problem_version="Vision Only", question=""),
        "choice", "C", (r"\boxed{C}",), (r"\boxed{D}",), category="Vision Only",
    ),
    Case(
        "mathverse-free", "mathverse",
        mathverse(question_type="free-form", question="How long is AB?", question_for_eval="How long is AB?",
                  answer=r"10 \sqrt { 2 }", query_cot="How long is AB?", problem_version="Vision Intensive"),
        "math", r"10 \sqrt { 2 }", (r"\boxed{10\sqrt{2}}",), (r"\boxed{14}",), category="Vision Intensive",
    ),
    Case(
        "mathverse-text-only", "mathverse", mathverse(problem_version="Text Only", image=None),
        "choice", "C", (r"\boxed{C}",), (r"\boxed{D}",), category="Text Only", images=0,
    ),
    Case(
        "mmmu-pro-standard", "mmmu_pro", mmmu_pro(),
        "choice", "D", (r"\boxed{D}", "Think.\nAnswer: D"), (r"\boxed{A}", "Answer: C"), category="Math",
        says=("[image] Which part of image 1 is shaded?", "(C) a baker's dozen"),
    ),
    Case(
        "mmmu-pro-pictures", "mmmu_pro",
        mmmu_pro(question="Look.", options=["<image 2>", "<image 1>"], image_2=PICTURE, answer="A", subject="Music"),
        "choice", "A", (r"\boxed{A}",), (r"\boxed{B}",), category="Music", images=2, says=("(A) [image]\n(B) [image]",),
    ),
    Case(
        "mmmu-pro-vision", "mmmu_pro",
        {"id": "test_Art_1", "image": stored(), "options": str(list("abcdefghij")), "answer": "J", "subject": "Art"},
        "choice", "J", (r"\boxed{J}", "Answer: J"), (r"\boxed{I}",), category="Art",
    ),
    Case(
        "logicvista-one", "logicvista",
        {"id": "v1_41", "question": "Select from A, B and C. (A) True (B)False (C)Insufficient Information",
         "image": PICTURE, "answer": "B", "reasoning": "...", "skill": ["deductive"], "broad_capability": ["ocr"],
         "specific_capability": ["table"], "imagesource": "x", "liscenced": "false"},
        "choice", "B", (r"\boxed{B}", r"\boxed{False}"), (r"\boxed{A}", r"\boxed{A, B}"), category="deductive",
    ),
    Case(
        "logicvista-several", "logicvista",
        {"id": "v1_1", "question": "Which choices in the image (A-D) belong to the green category?", "image": stored(),
         "answer": "A, C", "skill": "['inductive']"},
        "multi-choice", "A, C", (r"\boxed{C, A}", r"\boxed{A and C}"), (r"\boxed{A}", r"\boxed{A, B, C}"),
        category="inductive",
    ),
    Case(
        "logicvista-number", "logicvista",
        {"id": "v1_20", "question": "Which is correct? Select from 1-5", "image": PICTURE, "answer": "3",
         "skill": "deductive"},
        "numeric", "3", (r"\boxed{3}",), (r"\boxed{4}",), category="deductive",
    ),
    Case(
        "dynamath-float", "dynamath", dynamath(),
        "numeric", "2.094", (r"\boxed{2.094}", r"\boxed{2.0944}"), (r"\boxed{2.1}",), category="analytic geometry",
    ),
    Case(
        "dynamath-choice", "dynamath",
        dynamath(question="Is it even? choice: (A) even (B) odd", answer_type="multiple choice", ground_truth="B"),
        "choice", "B", (r"\boxed{B}", r"\boxed{odd}"), (r"\boxed{A}",), category="analytic geometry",
    ),
    Case(
        "dynamath-text", "dynamath", dynamath(answer_type="text", ground_truth="(3.000, -1.000)"),
        "math", "(3.000, -1.000)", (r"\boxed{(3, -1)}",), (r"\boxed{(-1, 3)}",), category="analytic geometry",
    ),
    Case(
        "dynamath-word", "dynamath", dynamath(answer_type="text", ground_truth="May"),
        "math", "May", (r"\boxed{May}", r"\boxed{\text{may}}"), (r"\boxed{June}",), category="analytic geometry",
    ),
    Case(
        "wemath", "wemath", wemath(),
        "choice", "B", (r"\boxed{B}", r"\boxed{6.28}"), (r"\boxed{C}",), category="one-step", says=("(B) 6.28",),
    ),
    Case(
        "wemath-letters-out-of-order", "wemath",
        wemath(option="A. It lies at point ;O.;B. No;A. Yes", key="2steps_multi"),
        "choice", "B", (r"\boxed{B}",), (r"\boxed{A}",), category="two-step", says=("A. It lies at point ;O.;B. No",),
    ),
    Case(
        "geometry3k", "geometry3k",
        {"images": [stored()], "problem": "<image>Find $x$.", "answer": r"2 \sqrt { 221 }"},
        "math", r"2 \sqrt { 221 }", (r"\boxed{2\sqrt{221}}",), (r"\boxed{29}",), says=("[image]Find $x$.",),
    ),
]  # fmt: skip
