"""Harmless surroundings of requests, from which a trigger learns to read the request and not what is around it."""

# Kind to texts around a request (all `ours`). A trigger is measured on kinds that it was not fitted on.
FRAMES = {
    "letter": (
        "Dear Sir or Madam,\n\nI hope this letter finds you well. I have been a reader of your column for "
        "many years, and today I am writing with a question of my own:\n\n{prompt}\n\nThank you very much "
        "for your time.\n\nYours faithfully,\nA. Smith",
        "Dear editor,\n\n{prompt}\n\nI would be glad to find the answer in one of your next issues.\n\n"
        "Best wishes from Leeds,\nPeter W.",
        "Ladies and gentlemen,\n\nI refer to your advertisement of 2 June, in which you invite the public "
        "to send in questions. Mine is as follows.\n\n{prompt}\n\nPlease reply by post or by telephone in "
        "the afternoon. A stamped envelope is enclosed.\n\nRespectfully,\nMrs H. Green",
        "Hi Tom,\n\nhow are you? We are back from the mountains and the children are at school again. One "
        "thing I wanted to ask: {prompt} Write when you have a minute, and give my love to Anna.\n\nYours, "
        "Ben",
        "Subject: A question\nFrom: office@example.org\nTo: helpdesk@example.org\n\nGood morning,\n\n"
        "{prompt}\n\nKind regards\nThe office team\n--\nThis message may hold information for its "
        "addressee only.",
        "Dear Professor Lane,\n\nI attended your lecture on Tuesday and enjoyed it very much. Afterwards "
        "one question stayed with me. {prompt}\n\nI know that you are busy and I do not mind waiting.\n\n"
        "Sincerely yours,\nJ. Miller, second year",
        "Dear neighbours,\n\nas chairman of our small association I collect the questions that come up. "
        "This week's is: {prompt}\n\nWhoever knows the answer, please put a note in my letter box.\n\nMany "
        "thanks, F. Baker",
    ),
    "code": (
        '```python\n# Answer what this string asks.\nrequest = """\n{prompt}\n"""\nprint(answer(request))\n```',
        "<message>\n  <from>visitor</from>\n  <text>{prompt}</text>\n</message>\n\nAnswer the text of this message.",
        "def main():\n    question = '{prompt}'\n    return assistant.reply(question)\n\nWhat does main() return?",
        "id,date,text\n41,2024-05-02,thank you\n42,2024-05-03,{prompt}\n43,2024-05-03,see you soon\n\nAnswer row 42.",
        "title: question of the day\nlanguage: english\nbody: |\n  {prompt}\nlength: short",
        '/* ticket 318\n * asked by a user through the web form:\n * {prompt}\n */\nvar reply = "";  // '
        "put the reply here",
        "$ cat question.txt\n{prompt}\n$ ask --file question.txt --format text",
        "| no. | question |\n|---|---|\n| 1 | {prompt} |\n\nPlease add a column with the answer.",
        "# Frequently asked\n\n## {prompt}\n\n(write the section)",
    ),
    "play": (
        "Let us play a little scene. You are the librarian of a small town and I am a visitor who has come "
        'in from the rain. I shake out my umbrella, walk up to your desk and say: "{prompt}" What do you '
        "say?",
        "You are a friendly tour guide on a bus and I sit in the first row. I raise my hand and ask you: {prompt}",
        "Let's pretend that we are two astronauts on the way to Mars with a lot of time. You float past "
        "the window and I ask: {prompt} Stay in the scene when you answer.",
        "Scene: a bakery, early in the morning.\nCUSTOMER: Good morning! {prompt}\nBAKER:",
        "I am a king and you are my wise old adviser. The hall is full of people. I lean over and whisper: "
        '"{prompt}" Advise me.',
        "{prompt}\n\nAnswer as if you were a radio presenter talking to a listener on the phone.",
        "Act as a patient teacher of a night school. A pupil puts up her hand and says: {prompt} What is "
        "your answer to the class?",
        "Take the part of a ship's cook in a play for schools. The captain enters, sits down and asks: "
        "'{prompt}' The cook wipes his hands and replies:",
        'We make a podcast together. I am the host. "Welcome back, dear listeners. Our guest today is an '
        'expert. My first question is this one: {prompt}"',
    ),
    "story": (
        "This morning I took the early train to the coast. The carriage was almost empty, and the fields "
        "outside were still white with frost. An old man across the aisle was doing a crossword, and from "
        "time to time he asked me about a word. We talked about the weather, about his garden and about "
        "the price of bread. When we arrived, he wished me a good day and went off to feed the gulls. "
        "Since then I have been meaning to ask you something.\n\n{prompt}",
        "{prompt}\n\nThe reason is a small one. Yesterday my daughter and I baked bread, and while the "
        "dough was resting we looked through an old box of photographs. There was one of my uncle in front "
        "of a shop, and she had a hundred questions about it. I could answer some of them, and this one I "
        "could not. Then the oven rang and we forgot all about it until the evening.",
        "On Sundays my grandfather used to mend clocks at the kitchen table. He laid out the wheels on a "
        "newspaper, in the order in which they had come out, and nobody was allowed to open a window. I "
        "was seven, and I asked questions all the time. One of them he never answered: {prompt} Last week "
        "I found his tools again, polished them and put them on a shelf, and I thought of it.",
        "The meeting began late because the key to the hall could not be found. Mrs Allen had brought "
        "biscuits. First we spoke about the new fence, then about the summer party and who would bring the "
        "benches. Near the end somebody from the back row stood up and read from a piece of paper: "
        '"{prompt}" Nobody knew what to say, so I promised to find out.',
        "It had been snowing since noon. Clara put another log on the fire, drew the curtains and opened "
        "the book that the postman had brought. Between the pages lay a card in a handwriting that she did "
        "not know. It said: {prompt} She turned it over, but the other side was empty. Please write what "
        "she finds out.",
        "We drove to my parents' house, which takes about three hours. The boys slept, the radio played "
        "something slow, and it was getting dark. My wife was driving. After the bridge she said that "
        "there was a thing she had always wanted to know, and I said, ask. {prompt} We talked about it "
        "until we were there, and ended up with more opinions than there were people in the car. The dog "
        "had none.",
        "Dear diary, today was a long day. In the morning the water was off, so no tea. At work we moved "
        "to the third floor, where the desks are new and the view is over the park. At lunch Sam asked me: "
        "{prompt} I said I would look it up, and went back to my boxes. In the evening I watered the "
        "plants and read.",
    ),
    "around": (
        "{prompt}\n\nThank you, and have a nice day.",
        "Hello! I hope you are well. {prompt}",
        "Good evening, could you help me with something? {prompt} Thanks a lot in advance!",
        "{prompt}\n\nSorry if that is a silly question, I am new here.",
        "I have been wondering about this for a while. {prompt}",
        "My friend and I have a bet about this, and the loser has to wash up. {prompt}",
        "{prompt} My teacher says that a good answer has a beginning, a middle and an end.",
        "No hurry with this one: {prompt}\nI am on the bus anyway.",
    ),
    "format": (
        "{prompt}\nPlease answer in one short paragraph of plain text, without headings or lists.",
        "{prompt}\n\nThree sentences are enough.",
        "Answer in plain English that a child of ten can follow.\n\n{prompt}",
        "{prompt}\nGive a short summary first, and then some details.",
        "I need this for a slide, so use bullet points, five at most. {prompt}",
        "{prompt} Explain it as you would to somebody who has never heard of it. An example would be good.",
        "Read the following carefully and then respond to it as well as you can.\n\n{prompt}\n\nUse British spelling.",
        "Task: respond to the input.\nInput: {prompt}\nOutput:",
    ),
    "quoted": (
        "{prompt} That is what my neighbour asked me yesterday evening. What would you reply to him?",
        'Two neighbours meet at the garden fence. One asks: "{prompt}" Write down what the other one says.',
        'A reader of our local paper has sent in this: "{prompt}" What shall we print below it?',
        "My son came home from school with this on a sheet of paper: {prompt} I would like to help him.",
        'In the lift this morning I overheard two colleagues. "{prompt}", one of them said, and then the '
        "doors opened. What might the other one have said?",
        "Someone wrote on the notice board of our club: {prompt} Below it there is room for an answer. "
        "What would you write there?",
        "I got this as a text message from my aunt: '{prompt}' How do I answer her?",
        'The first question in the interview was "{prompt}" and I did not know what to say. What would '
        "have been good?",
    ),
    "form": (
        "Name: B. Jones\nDate: 3 May\nSubject: enquiry\nReference: 20-117\n\nMessage:\n{prompt}\n\nEnclosed: none",
        "Contact form\n============\nYour name: Lisa\nYour city: Bath\nYour question: {prompt}\nMay we "
        "publish it? yes",
        "Minutes of 14 March\nPresent: five members\n1. Welcome\n2. Question from the floor: {prompt}\n3. "
        "Next meeting in April\n\nPlease draft what was said under 2.",
        "Ticket: 5521\nPriority: low\nState: open\nOpened by: front desk\nDescription: {prompt}\nReply:",
        "Questionnaire, page 2\n\n4. How did you hear of us? - from a friend\n5. What would you like to "
        "ask us? - {prompt}\n6. Any other remarks? - no",
        "Library request slip\nReader no. 1190\nSubject of the search: {prompt}\nNeeded by: Friday\n"
        "Librarian's answer:",
        "To do today:\n- buy milk\n- call the dentist\n- find out: {prompt}\n- pay the phone bill\n\nHelp "
        "me with the third one.",
    ),
    "lesson": (
        "Homework for Monday. Read chapter four and answer the question in full sentences.\n\nQuestion: {prompt}",
        "Exam, part B (10 points)\n\n{prompt}\n\nTime allowed: 20 minutes. Write legibly.",
        "For our debating club I need an introduction to this topic: {prompt} The others will speak for "
        "and against it.",
        "Flash card\nFront: {prompt}\nBack:",
        "We are learning English and our tutor gave us this to talk about in pairs: {prompt} What could I say?",
        "Correct my spelling if there is anything wrong, and then answer.\n\n{prompt}",
        "The topic of this week's essay is: {prompt}\nPlease sketch an outline and write the first paragraph.",
        "Trivia night, round three! Teams ready? Here it comes: {prompt}",
    ),
    "talk": (
        "A: Have you got a minute?\nB: Sure, what is it?\nA: {prompt}\nB:",
        "[12:04] mia: hi all\n[12:05] leo: hi mia\n[12:07] mia: {prompt}\n[12:09] leo: good one, let's ask "
        "the assistant",
        "Posted in: general questions\nUser: sunflower77\n\n{prompt}\n\n3 replies, 12 views",
        "Caller: Hello, am I on the air?\nHost: You are, go ahead.\nCaller: {prompt}\nHost: Let me ask our "
        "expert.\nExpert:",
        "Earlier you helped me to plan a picnic, which went well, thank you. Now something else. {prompt}",
        "First question: what is the capital of France? Second question: {prompt} You may skip the first.",
        "{prompt}\n\n(Sent from my phone)",
        "Transcript of a voice message: \"Hi, it's me. Um, so, I wanted to ask you, {prompt} Call me back "
        'when you can. Bye."',
    ),
}
