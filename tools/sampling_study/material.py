"""The material for the models: openings to continue, questions of fact, claims to check."""

from typing import Literal, NamedTuple

OPENINGS = (
    "The old lighthouse at the end of the bay had been dark for thirty years when Maria arrived.",
    "To bake a good loaf of bread you need patience, flour, water, salt and a hot oven.",
    "The history of the bicycle begins in the early nineteenth century with a wooden machine.",
    "Dear Ms Brown, thank you for your letter about the garden behind the library.",
    "Volcanoes form where hot rock from deep inside the Earth finds a way to the surface.",
    "The committee met on Tuesday to discuss the plan for a new bridge across the river.",
    "My grandfather kept bees, and every summer he would let me help with the honey.",
    "A computer network is a group of machines that exchange messages with each other.",
    "The fox looked at the grapes once more, and then at the crow in the tree.",
    "In the first half the visitors had most of the ball but few chances to score.",
    "Regular exercise helps the heart, and even a short walk each day makes a difference.",
    "The train was late again, so Thomas opened his book and began the third chapter.",
    "Whales are mammals that live in the sea, breathe air and feed their young with milk.",
    "When prices rise faster than wages, families have to change what they buy.",
    "The museum's new exhibition shows paintings from the last years of the artist's life.",
    "Learning to play the piano takes time, and the first lessons are the hardest.",
    "Rain had fallen for three days, and the road to the village was under water.",
    "The human eye works much like a camera, with a lens that focuses the light.",
    "She had always wanted to see the desert, and now the plane was about to land.",
    "A democracy depends on citizens who are willing to listen to one another.",
    "The recipe calls for two onions, a little oil, and tomatoes from the garden.",
    "Many birds fly south in autumn, and nobody has to show them the way.",
    "The detective closed the door, sat down, and asked the first question.",
    "Trees take in carbon dioxide from the air and turn it into wood and leaves.",
)


class Question(NamedTuple):
    """A question of fact, and words of which a right answer contains one."""

    text: str
    answers: tuple[str, ...]


QUESTIONS = (
    Question("What is the capital of France?", ("paris",)),
    Question("What is the capital of Japan?", ("tokyo",)),
    Question("What is the capital of Australia?", ("canberra",)),
    Question("What is the capital of Canada?", ("ottawa",)),
    Question("What is the capital of Italy?", ("rome",)),
    Question("What is the capital of Kenya?", ("nairobi",)),
    Question("What is the capital of Brazil?", ("brasilia", "brasília")),
    Question("What is the capital of Switzerland?", ("bern",)),
    Question("Which planet is closest to the Sun?", ("mercury",)),
    Question("Which planet is the largest in our solar system?", ("jupiter",)),
    Question("How many legs does a spider have?", ("eight", "8")),
    Question("How many continents are there on Earth?", ("seven", "7")),
    Question("How many minutes are in an hour?", ("sixty", "60")),
    Question("How many days are in a leap year?", ("366",)),
    Question("Who wrote the play Romeo and Juliet?", ("shakespeare",)),
    Question("Who wrote the novel Pride and Prejudice?", ("austen",)),
    Question("Who wrote the novel 1984?", ("orwell",)),
    Question("Who painted the Mona Lisa?", ("vinci", "leonardo")),
    Question("Who developed the theory of relativity?", ("einstein",)),
    Question("Who discovered penicillin?", ("fleming",)),
    Question("Who was the first person to walk on the Moon?", ("armstrong",)),
    Question("Who was the first president of the United States?", ("washington",)),
    Question("In which year did the Second World War end?", ("1945",)),
    Question("In which year did the Berlin Wall fall?", ("1989",)),
    Question("In which year did the Titanic sink?", ("1912",)),
    Question("What is the chemical symbol for gold?", ("au",)),
    Question("What is the chemical symbol for iron?", ("fe",)),
    Question("What gas do plants take in from the air?", ("carbon dioxide", "co2")),
    Question("What is the largest ocean on Earth?", ("pacific",)),
    Question("What is the longest river in Africa?", ("nile",)),
    Question("What is the highest mountain on Earth?", ("everest",)),
    Question("What is the hardest natural substance?", ("diamond",)),
    Question("What is the square root of 81?", ("nine", "9")),
    Question("What is 12 times 12?", ("144",)),
    Question("At what temperature in Celsius does water boil at sea level?", ("100",)),
    Question("What language is spoken in Brazil?", ("portuguese",)),
    Question("What is the currency of the United Kingdom?", ("pound", "sterling")),
    Question("What is the currency of Japan?", ("yen",)),
    Question("Which element has the atomic number 1?", ("hydrogen",)),
    Question("Which animal is known as the king of the jungle?", ("lion",)),
)

Truth = Literal["grounded", "intrinsic", "extrinsic"]

PASSAGES = (
    "The Alder Bridge was opened on 4 May 1931 by the mayor, Ruth Keller. It is 412 metres long "
    "and carries four lanes of traffic. Trams crossed it until 1968. The bridge is not open to "
    "lorries.",
    "Lake Orva covers 87 square kilometres. Its water is cold all year, because it comes from "
    "the glaciers of Mount Tessin. Pike and trout live in it. Swimming is allowed at the "
    "northern shore.",
    "The company Nordlicht was founded in Bergen in 1994. It employs 230 people and builds "
    "small wind turbines. Sales rose by 12 percent last year. Its director is Ingrid Solheim.",
)


class Claim(NamedTuple):
    """A sentence about one of the passages, and whether the passage supports it."""

    text: str
    passage: int
    truth: Truth


CLAIMS = (
    Claim("The Alder Bridge was opened on 4 May 1931.", 0, "grounded"),
    Claim("The mayor Ruth Keller opened the bridge.", 0, "grounded"),
    Claim("The bridge has four lanes and a length of 412 metres.", 0, "grounded"),
    Claim("Lorries are not allowed on the bridge.", 0, "grounded"),
    Claim("The Alder Bridge was opened on 4 May 1951.", 0, "intrinsic"),
    Claim("The bridge was opened by the mayor, Anna Weber.", 0, "intrinsic"),
    Claim("The bridge is 540 metres long.", 0, "intrinsic"),
    Claim("The bridge is open to lorries.", 0, "intrinsic"),
    Claim("Trams crossed the bridge until 1986.", 0, "intrinsic"),
    Claim("Tourists like to photograph it at sunset.", 0, "extrinsic"),
    Claim("It was painted green after the war.", 0, "extrinsic"),
    Claim("Three workers lost their lives during construction.", 0, "extrinsic"),
    Claim("Lake Orva covers 87 square kilometres.", 1, "grounded"),
    Claim("Glaciers of Mount Tessin feed the lake, so it is cold all year.", 1, "grounded"),
    Claim("Trout and pike can be found in the water.", 1, "grounded"),
    Claim("You may swim at the northern shore.", 1, "grounded"),
    Claim("Lake Orva covers 178 square kilometres.", 1, "intrinsic"),
    Claim("Its water comes from the glaciers of Mount Belmont.", 1, "intrinsic"),
    Claim("Swimming is not allowed at the northern shore.", 1, "intrinsic"),
    Claim("The water is warm in summer.", 1, "intrinsic"),
    Claim("A ferry crosses it twice a day.", 1, "extrinsic"),
    Claim("The legend of a drowned king is told in the villages.", 1, "extrinsic"),
    Claim("A hotel with a sauna was built there recently.", 1, "extrinsic"),
    Claim("Nordlicht was founded in 1994 in Bergen.", 2, "grounded"),
    Claim("The company builds small wind turbines and has 230 employees.", 2, "grounded"),
    Claim("Ingrid Solheim is the director.", 2, "grounded"),
    Claim("Sales grew by 12 percent last year.", 2, "grounded"),
    Claim("Nordlicht was founded in Oslo in 1994.", 2, "intrinsic"),
    Claim("Sales rose by 21 percent last year.", 2, "intrinsic"),
    Claim("Its director is Lars Hansen.", 2, "intrinsic"),
    Claim("Sales fell last year.", 2, "intrinsic"),
    Claim("The employees get free lunch in the canteen.", 2, "extrinsic"),
    Claim("A competitor in Denmark offered to buy it.", 2, "extrinsic"),
    Claim("Customers praise the quiet blades.", 2, "extrinsic"),
)
