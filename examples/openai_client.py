"""The official client, unchanged: ask, stream, say what you think, be asked, see why.

PALATE_KEY=pk-... python examples/openai_client.py
"""

import os

import httpx
from openai import OpenAI

URL = os.environ.get("PALATE_URL", "http://localhost:8600")
KEY = os.environ["PALATE_KEY"]
QUESTION = "I never know what to cook after work. How can I get into a realistic meal-planning habit?"

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY)
asked = [{"role": "user", "content": QUESTION}]
first = client.chat.completions.create(model="any", messages=asked, user="ana")
text = first.choices[0].message.content
print("Palate:", text)

# What is typed next is read as a reply to it.
asked += [{"role": "assistant", "content": text}, {"role": "user", "content": "Too stiff for me, be more relaxed!"}]
for chunk in client.chat.completions.create(model="any", messages=asked, user="ana", stream=True):
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

palate = httpx.Client(base_url=URL, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
palate.post("/v1/feedback", json={"completion_id": first.id, "name": "rating", "value": 0.2})
query = palate.post("/v1/users/ana/queries").json()
palate.post(f"/v1/users/ana/queries/{query['query_id']}", json={"choice": "a"})
print("Known of ana:", palate.get("/v1/users/ana").json()["words"])
print("Why:", palate.get(f"/v1/completions/{first.id}/explanation").json()["words"])
