"""Random requests, and what engines make of them."""

VOCAB = 400


def make_requests(engines, rng, count=12, shared_prefix=0, output_tokens=(1, 50)):
    prefix = [rng.randrange(VOCAB) for _ in range(shared_prefix)]
    requests = []
    for i in range(count):
        prompt = prefix + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 70))]
        sampling = {"max_tokens": rng.randrange(*output_tokens), "ignore_eos": True}
        if i % 2:
            sampling |= {
                "temperature": rng.choice([0.7, 1.0, 1.5]),
                "seed": rng.randrange(-(1 << 63), 1 << 63),
                "top_p": rng.choice([1.0, 0.9]),
                "top_k": rng.choice([0, 20]),
                "repetition_penalty": rng.choice([1.0, 1.2]),
                "presence_penalty": rng.choice([0.0, 0.5]),
                "repeat_last_n": rng.choice([-1, 8]),
                "top_n_sigma": rng.choice([0.0, 1.5]),
                "dynatemp_range": rng.choice([0.0, 0.5]),
                "mirostat": rng.choice([0, 0, 2]),
                "xtc_probability": rng.choice([0.0, 0.5]),
                "xtc_threshold": 0.01,
                "dry_multiplier": rng.choice([0.0, 0.8]),
                "bad_words": rng.choice([(), ((7,), (7, 8), (9, 7))]),
                "n": rng.choice([1, 1, 3]),
            }
        requests.append(engines.request(str(i), prompt, **sampling))
    return requests


def texts(done):
    return {key: completion.token_ids for key, completion in done.items()}


def alone(engines, folder, requests):
    engine = engines.make(folder, enable_prefix_caching=False, max_num_batched_tokens=512)
    expected = {}
    for request in requests:
        expected |= texts(engines.run(engine, [request]))
    return expected
