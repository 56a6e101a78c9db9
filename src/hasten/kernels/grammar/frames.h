// What is remembered of the containers that are open (grammar.py says what each action means).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "blob.h"
#include "content.h"
#include "pool.h"

struct Cell {  // of a text (a: byte), of a list of values (a, b: digest; text: as it was written, -1 of containers), of words (a)
    uint64_t a, b;
    int32_t parent, text;
};

struct Frame {
    int32_t plan, parent, count;
    int32_t watched;    // its value is needed: it is an array of different items, or lies in one
    int32_t seen;       // cells, last word first; -1: no bit is set
    int32_t list;       // cells: an array's items, or an object's distinct keys; -1: none
    int32_t depth;      // 1 of the outermost
    int32_t shape;      // equal of frames that enable the same terminals until a list is consulted
    Digest value, key;  // of what is complete; of the key whose value comes
};

class Frames {
  public:
    static constexpr int32_t OUTSIDE = -1, REFUSED = -2;  // no frame is open; the terminal cannot be

    explicit Frames(const Grammar &grammar) : grammar(grammar) {}

    Pool<Frame> frames;
    Pool<Cell> cells;

    // The depth of the outermost frame that was looked at since it was set, and whether a list was.
    int32_t lowest = 0;
    bool consulted = false;
    // The scalar or key that comes next in this frame is taken to be no duplicate.
    int32_t trusted = REFUSED;

    // The frame after terminal `t` of the text in cells `text`, which is only read where the text is watched. REFUSED: a duplicate.
    int32_t apply(int32_t frame, int32_t t, int32_t text);
    // Whether the frame depends on what the terminal's text is.
    bool watches(int32_t frame, int32_t t) const { return grammar.terminals[t].distinct || (frame >= 0 && frames[frame].watched); }
    bool is_object(int32_t frame) const { return frame >= 0 && !grammar.plans[frames[frame].plan].array; }
    int32_t depth(int32_t frame) const { return frame < 0 ? 0 : frames[frame].depth; }
    void look_at(int32_t frame) { lowest = std::min(lowest, depth(frame)); }
    // Keeps what is marked; `opened` and `marked` are of frames and cells.
    void compact(std::vector<uint8_t> &opened, std::vector<uint8_t> &marked, std::vector<int32_t> &frame_of, std::vector<int32_t> &cell_of);
    std::string text_of(int32_t text) const;

  private:
    struct Shape {
        int32_t plan, count, watched, seen, listed;
    };
    const Grammar &grammar;
    Pool<Shape> shapes;

    int32_t keep(Frame &frame);
    void set(Frame &frame, const Plan &plan, int32_t bit);
    bool in_list(int32_t list, const Digest &one);
    int32_t finish_value(int32_t number, const Digest &value, int32_t text);
};

// A frame's answer to which terminals may come next.
class View {
  public:
    View(const Grammar &grammar, const Frames &frames, int32_t frame);
    // A COMMA of an object needs a key that is enabled after it as well, which the caller looks for.
    bool enabled(const Terminal &terminal) const;

  private:
    const Grammar &grammar;
    const Plan *plan = nullptr;  // null: no frame is open
    int32_t count = 0, witnesses_missing = 0;
    int32_t highest = -1;  // bit of a key that was seen
    std::vector<uint64_t> seen;
    struct Left {  // a row that has no forbidden bit set
        const Row *row;
        int32_t missing, first;  // required bits that are not seen: how many, the lowest (or beyond all)
    };
    std::vector<Left> rows;

    bool has(int32_t bit) const { return seen[bit / 64] >> (bit % 64) & 1; }
    bool array_goes_on(const Plan &array, int32_t count, int32_t witnesses_missing) const;
    bool opens(const Terminal &terminal) const;
    bool takes_key(int32_t bit, int32_t witnesses_missing) const;
    bool closes(int32_t count) const;
};
