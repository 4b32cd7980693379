"""LangChain's own class, unchanged but for the address and `user`.

PALATE_KEY=pk-... python examples/langchain_chat.py
"""

import os

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    base_url=f"{os.environ.get('PALATE_URL', 'http://localhost:8600')}/v1",
    api_key=os.environ["PALATE_KEY"],
    model="any",
    extra_body={"palate": {"candidates": 4}},
)
question = "I never know what to cook after work. How can I get into a realistic meal-planning habit?"
said = model.invoke(question, user="ana")
print(said.content)
print("completion:", said.response_metadata["id"])
