// Rows of a step that follow one another in a sequence: a prompt is one long run, and its attention goes by tiles.
#pragma once
#include <vector>

#include "attention_tile.h"
#include "decoder.h"

// What a step is given; see lissome_decoder_step.
struct Rows {
    int64_t count;
    const int32_t *token, *slot, *position;
    int64_t wanted;
    const int32_t *which;
    float *logits;
    const float *begin;  // [count, hidden], or null
    float *end;
};

// Rows of one sequence that follow one another.
struct Run {
    int64_t begin, end;
};

inline std::vector<Run> runs_of(int64_t rows, const int32_t *slot, const int32_t *position) {
    std::vector<Run> found;
    for (int64_t i = 0; i < rows; i++) {
        if (i && slot[i] == slot[i - 1] && position[i] == position[i - 1] + 1) found.back().end++;
        else found.push_back({i, i + 1});
    }
    return found;
}

// One row and one key-value head, and how many keys there are to see.
struct Look {
    int64_t row, head, keys;
};

// A key of a look; the looks' end is {looks, 0}.
struct Place {
    int64_t look, key;
};

// Where the shares of so many threads begin and end [threads + 1]: equally many keys each, cut at multiples of `least` keys.
inline std::vector<Place> shares_of(const std::vector<Look> &looks, int threads, int64_t least) {
    int64_t whole = 0, before = 0, look = 0;
    for (const Look &one : looks) whole += one.keys;
    std::vector<Place> shares{{0, 0}};
    for (int t = 1; t < threads; t++) {
        const int64_t wanted = whole * t / threads;
        while (look < (int64_t)looks.size() && before + looks[look].keys <= wanted) before += looks[look++].keys;
        Place place{look, (wanted - before + least / 2) / least * least};
        if (look < (int64_t)looks.size() && place.key >= looks[look].keys) place = {look + 1, 0};
        shares.push_back(place);
    }
    shares.push_back({(int64_t)looks.size(), 0});
    return shares;
}

// The selection of causal attention for a run, in the terms of attention.h: every tile sees all blocks before its own, and its own up to the diagonal.
struct Causal {
    std::vector<int32_t> blocks, masks;
    std::vector<uint64_t> bits;
    std::vector<float> lse;
    lissome_attention attention{};

    Causal(const lissome_decoder &d, const Run &run, int64_t offset) {
        lissome_attention &a = attention;
        const int64_t count = run.end - run.begin, first = offset / LISSOME_TILE;
        a.batch = 1, a.heads = d.heads, a.kv_heads = d.kv_heads, a.queries = count, a.keys = offset + count, a.dim = a.value_dim = d.dim;
        a.kv_half = d.half, a.threads = 1, a.scale = d.scale, a.lead = (int32_t)(offset % LISSOME_TILE);
        a.tiles = (a.lead + count + LISSOME_TILE - 1) / LISSOME_TILE, a.most = first + a.tiles;
        blocks.assign(a.tiles * a.most, -1), masks.assign(a.tiles * a.most, -1), bits.resize(LISSOME_TILE), lse.resize(d.heads * count);
        for (int64_t t = 0; t < a.tiles; t++) {
            for (int64_t b = 0; b <= first + t; b++) blocks[t * a.most + b] = (int32_t)b;
            masks[t * a.most + first + t] = 0;
        }
        for (int j = 0; j < LISSOME_TILE; j++) bits[j] = ~(uint64_t)0 << j;
        a.blocks = blocks.data(), a.masks = masks.data(), a.bits = bits.data(), a.lse = lse.data();
    }
};
