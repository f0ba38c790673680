# Juice.jl's text format, `.jpc`: header lines `c ...`, a line `jpc COUNT`, then one line for each unit, children before parents:
#
#     L id 0 literal                    Boolean: 3 is X3 = 1, -3 is X3 = 0; variables count from 1
#     I id 0 variable category          indicator
#     C id 0 variable logp0 logp1 ...   categorical
#     B id 0 variable N logp            binomial: N trials, log probability of success
#     P id 0 count child ...            product
#     S id 0 count child logw ...       sum
#
# and lines of our own, for inputs that Juice.jl has none of:
#
#     O id 0 variable C location scale  discretised logistic over C ordered categories; location and scale in levels
#     N id 0 variable rate              Poisson over counts
#     G id 0 variable mean deviation least   Gaussian; learning leaves the deviation at `least` or above
#
# The ids are 0..COUNT-1 in order (the 0 behind them is Juice.jl's vtree, which we have not); the root is the last unit. A circuit
# whose last unit is not its one head ends in a sum over its heads, and says so in the header: `c heads ID ID ...`.

# What a file may ask for beyond its own size: variables, and probabilities in tables. Few bytes name a variable, an indicator's
# category or a binomial's trials, but they must not claim the machine's memory. A full set of 1024 indicators asks for fewer than
# 64 entries a byte; one that is packed has as many in an eighth of the bytes.
const JPC_FREE = 2^16
const JPC_ENTRIES_PER_BYTE = 64
const JPC_PACKED = 8

# Parameters whose total is this close to 1 are taken as they are: no more than rounding to Float32 decimals does. They could not
# be written back unchanged if they were scaled for it.
const JPC_ROUNDING = 1e-5

# Logarithms of two digits add up to no less.
const JPC_TOLERANCE = 1e-2

"An input's line. It needs `categories`; an indicator's category is `place`, a categorical's probabilities are `listed[place]` on."
struct JpcInput
    unit::Int
    line::Int
    categories::Int
    place::Int
end

"""
    JpcReader(bytes; packed = false)

What a file of so many bytes said so far; `packed`, if they are compressed. [`read_piece!`](@ref) takes its text, piece by piece, and
[`finish!`](@ref) gives the circuit. The inputs' tables are laid out at the end, when every variable's categories are known.
"""
mutable struct JpcReader
    builder::Builder
    bytes::Int                  # of the file, unpacked: what it may ask for goes by them
    line::Int
    announced::Int              # units, by the line `jpc COUNT`; -1 before it
    heads::Vector{Int}          # units, by the line `c heads ID ID ...`; empty without one
    heads_line::Int
    inputs::Vector{JpcInput}
    listed::Vector{Float32}     # probabilities of the categorical inputs
    num_vars::Int
    rest::Vector{UInt8}         # a line whose end is still to come
end

JpcReader(bytes::Integer; packed::Bool=false) =
    JpcReader(Builder(0), (packed ? JPC_PACKED : 1) * bytes, 0, -1, Int[], 0, JpcInput[], Float32[], 0, UInt8[])

"""
    read_jpc(path) -> Circuit

Reads Juice.jl's text format. Comments, blank lines and spaces may stand anywhere; an edge or a category of weight `-Inf` (or one
that rounds to zero) is an edge that is left out or a category that is impossible; weights that sum to almost 1 are normalised.
A variable has as many categories as the input of it that needs most; a shorter categorical gives the others probability 0.
A final sum over the heads that the header names is left out, and its weights with it.

Throws an `ArgumentError` that names the line and what is wrong with it. Takes time and memory in proportion to the file's size,
whatever the file claims.
"""
function read_jpc(path::AbstractString)
    reader, piece = JpcReader(filesize(path)), Vector{UInt8}(undef, 2^20)
    open(path) do io
        while (count = readbytes!(io, piece)) > 0
            read_piece!(reader, view(piece, 1:count))
        end
    end
    return finish!(reader)
end

"Takes the next bytes of a file; lines may end anywhere in them."
function read_piece!(r::JpcReader, bytes::AbstractVector{UInt8})
    first = 1
    while (stop = findnext(==(UInt8('\n')), bytes, first)) !== nothing
        if isempty(r.rest)
            read_line!(r, Fields(bytes, first, stop - 1))
        else
            append!(r.rest, view(bytes, first:stop - 1))
            read_line!(r, Fields(r.rest, 1, length(r.rest)))
            empty!(r.rest)
        end
        first = stop + 1
    end
    append!(r.rest, view(bytes, first:length(bytes)))
    return nothing
end

"The circuit, when all has been read."
function finish!(r::JpcReader)
    isempty(r.rest) || read_line!(r, Fields(r.rest, 1, length(r.rest)))
    b, n = r.builder, length(r.builder.kind)
    r.announced >= 0 || throw(ArgumentError("found no line `jpc COUNT`"))
    n == r.announced || throw(ArgumentError("the file ends after $n of $(r.announced) units"))
    n > 0 || throw(ArgumentError("a circuit without units"))
    lay_out_tables!(r)
    heads, head_weight = isempty(r.heads) ? ([n], [1f0]) : (r.heads, take_head_weights!(r))
    return Circuit(r.num_vars, b.kind, b.variable, b.categories, b.param_start, b.param_stride, b.success, b.child_start,
                   b.child, b.weight, b.leaf, Vector{Int32}(heads), head_weight)
end

refuse(r::JpcReader, reason) = throw(ArgumentError(r.line > 0 ? "line $(r.line): $reason" : reason))  # 0: units come from no file
refuse_unit(r::JpcReader, reason) = refuse(r, "unit $(length(r.builder.kind)): $reason")  # the one that comes next

# A line's fields, which spaces part, one after another: there may be millions.

"What is left of a line: `bytes[at:last]`."
mutable struct Fields{A<:AbstractVector{UInt8}}
    bytes::A
    at::Int
    last::Int
end

is_space(byte::UInt8) = byte == 0x20 || 0x09 <= byte <= 0x0d

"The range of the next field's bytes; empty at the end of the line."
function next_field!(f::Fields)
    bytes, at, last = f.bytes, f.at, f.last
    @inbounds while at <= last && is_space(bytes[at])
        at += 1
    end
    start = at
    @inbounds while at <= last && !is_space(bytes[at])
        at += 1
    end
    f.at = at
    return start:at - 1
end

"How many fields are left."
function fields_left(f::Fields)
    rest, count = Fields(f.bytes, f.at, f.last), 0
    while !isempty(next_field!(rest))
        count += 1
    end
    return count
end

text(f::Fields, range) = String(f.bytes[range])

"Bytes as an error shows them: short, on one line."
quoted(f::Fields, range) = repr(first(text(f, first(range):min(last(range), first(range) + 99)), 24))

is_word(f::Fields, range, word) = length(range) == sizeof(word) && all(i -> f.bytes[range[i]] == codeunit(word, i), 1:sizeof(word))

function read_line!(r::JpcReader, f::Fields)
    r.line += 1
    r.line == 1 && f.last >= f.at + 2 && is_word(f, f.at:f.at + 2, "\ufeff") && (f.at += 3)
    whole = f.at:f.last
    kind = next_field!(f)
    isempty(kind) && return
    if f.bytes[first(kind)] == UInt8('c')
        is_word(f, kind, "c") && is_word(f, next_field!(f), "heads") && read_heads!(r, f)
    elseif r.announced >= 0
        read_unit!(r, f, kind)
    else
        is_word(f, kind, "jpc") && fields_left(f) == 1 || refuse(r, "found $(quoted(f, whole)), wanted `jpc COUNT`")
        r.announced = integer(r, f, next_field!(f), "the number of units", 0, typemax(Int))
    end
end

function integer(r::JpcReader, f::Fields, field, name, low, high)
    value, at = 0, first(field)
    negative = !isempty(field) && f.bytes[at] == UInt8('-')
    negative && (at += 1)
    sound = at <= last(field) <= at + 17  # so many digits do not overflow
    @inbounds for i in at:last(field)
        digit = f.bytes[i] - UInt8('0')
        sound &= digit <= 9
        sound && (value = 10 * value + digit)
    end
    sound || refuse(r, "found $(quoted(f, field)) for $name, wanted an integer")
    negative && (value = -value)
    low <= value <= high || refuse(r, "found $value for $name, wanted $low..$high")
    return value
end

const POWERS_OF_TEN = [10.0^k for k in 0:22]

"""
The Float32 nearest to a decimal of up to 15 digits, as nearly all are; `nothing` where that takes longer thought. Such a number is a
quotient or a product of two that Float64 holds exactly; then it is rounded a second time, which is right unless the first time ended
in the middle between two Float32.
"""
function simple_float(f::Fields, field)
    mantissa, digits, scale, at, stop = 0, 0, 0, first(field), last(field)
    bytes, point = f.bytes, false
    @inbounds negative = at <= stop && bytes[at] == UInt8('-')
    negative && (at += 1)
    @inbounds while at <= stop
        digit = bytes[at] - UInt8('0')
        if digit <= 9
            mantissa = 10 * mantissa + digit
            digits += 1
            point && (scale -= 1)
            digits <= 15 || return nothing
        elseif bytes[at] == UInt8('.') && !point
            point = true
        else
            break
        end
        at += 1
    end
    digits > 0 || return nothing
    if at <= stop
        @inbounds bytes[at] in (UInt8('e'), UInt8('E'), UInt8('f')) || return nothing
        at += 1
        @inbounds down = at <= stop && bytes[at] == UInt8('-')
        down && (at += 1)
        at <= stop <= at + 2 || return nothing
        exponent = 0
        @inbounds for i in at:stop
            digit = bytes[i] - UInt8('0')
            digit <= 9 || return nothing
            exponent = 10 * exponent + digit
        end
        scale += down ? -exponent : exponent
    end
    -22 <= scale <= 22 || return nothing
    value = scale < 0 ? mantissa / POWERS_OF_TEN[1 - scale] : mantissa * POWERS_OF_TEN[1 + scale]
    abs(Int(reinterpret(UInt64, value) & 0x1fffffff) - 0x10000000) <= 1 && return nothing
    return Float32(negative ? -value : value)
end

"The number behind a logarithm. Read as the Float32 that it was, it is written again with the same digits."
function exponential(r::JpcReader, f::Fields, field)
    value = decimal(f, field)
    value === nothing || isnan(value) || value == Inf32 ? refuse_unit(r, "found $(quoted(f, field)), wanted a logarithm") :
                                                          exp(Float64(value))
end

"The Float32 nearest to a decimal; `nothing` where it is none."
function decimal(f::Fields, field)
    value = simple_float(f, field)
    value === nothing || return value
    digits = length(field) <= 400 ? text(f, field) : ""  # some write an exact decimal
    value = tryparse(Float32, digits)
    return value === nothing ? tryparse(Float32, replace(digits, 'f' => 'e')) : value  # Julia shows a Float32 as 1.0f-5
end

function read_heads!(r::JpcReader, f::Fields)
    isempty(r.heads) || refuse(r, "the heads are named twice, on line $(r.heads_line) before")
    r.heads_line = r.line
    while !isempty(begin field = next_field!(f) end)
        push!(r.heads, integer(r, f, field, "a head", 0, typemax(Int32) - 1) + 1)
    end
end

function read_unit!(r::JpcReader, f::Fields, kind)
    b, known = r.builder, length(kind) == 1 && f.bytes[first(kind)] in codeunits("LICBONGPS")
    known || refuse(r, "found $(quoted(f, kind)), wanted a unit: L, I, C, B, O, N, G, P or S")
    letter = Char(f.bytes[first(kind)])
    at, id, vtree, number = f.at, next_field!(f), next_field!(f), next_field!(f)
    isempty(number) && refuse_fields(r, f, at, letter)
    unit = integer(r, f, id, "a unit's id", 0, typemax(Int32) - 1)
    unit == length(b.kind) || refuse(r, "found unit $unit, wanted unit $(length(b.kind)): ids count up from 0")
    unit < r.announced || refuse(r, "found unit $unit, `jpc` announced $(r.announced)")
    if letter == 'P'
        read_children!(r, f, number, false)
        add_unit!(b, PRODUCT)
    elseif letter == 'S'
        first_edge = length(b.child) + 1
        total = read_children!(r, f, number, true)
        settle!(r, view(b.weight, first_edge:length(b.weight)), total)
        add_unit!(b, SUM)
    else
        read_input!(r, f, at, letter, number)
    end
end

"Of a line that is too short, whose fields after the first begin at `at`."
function refuse_fields(r::JpcReader, f::Fields, at, letter)
    least = letter in "OG" ? 7 : letter == 'B' ? 6 : letter in "ICN" ? 5 : 4
    refuse(r, "found $(1 + fields_left(Fields(f.bytes, at, f.last))) fields, wanted $least or more: is it cut off?")
end

"The edges of a product or a sum, without those of weight 0; returns their total weight, before rounding."
function read_children!(r::JpcReader, f::Fields, number, weighted::Bool)
    b, total, found = r.builder, 0.0, 0
    isempty(b.kind) && refuse_unit(r, "no units come before it that could be its children")
    announced, start = integer(r, f, number, "the number of children", 1, typemax(Int32)), f.at
    while !isempty(begin field = next_field!(f) end)
        (found += 1) <= announced || break
        child = integer(r, f, field, "a child", 0, length(b.kind) - 1) + 1
        weight = 1.0
        if weighted
            field = next_field!(f)
            isempty(field) && (found -= 1; break)
            weight = exponential(r, f, field)
        end
        total += weight
        Float32(weight) > 0 || continue
        push!(b.child, child)
        push!(b.weight, weight)
        pause(100)
    end
    if found != announced || !isempty(next_field!(f))
        fields, each = fields_left(Fields(f.bytes, start, f.last)), 1 + weighted
        refuse_unit(r, "announces $announced children: found $fields fields for them, wanted $(each * announced)")
    end
    return total
end

"Makes parameters sum to 1 that almost do."
function settle!(r::JpcReader, weights, total)
    abs(total - 1) <= JPC_TOLERANCE || refuse_unit(r, "its parameters sum to $total, not 1")
    abs(total - 1) <= JPC_ROUNDING || (weights ./= total)
end

function read_input!(r::JpcReader, f::Fields, at, letter, number)
    start, largest = f.at, min(JPC_FREE + r.bytes, typemax(Int32))
    if letter == 'L'
        literal = integer(r, f, number, "a literal", -largest, largest)
        literal == 0 && refuse_unit(r, "the literal 0 is no variable's")
        add_input!(r, LITERAL, abs(literal), 2, literal > 0 ? 1 : 0)
    else
        variable = integer(r, f, number, "a variable", 1, largest)
        if letter in "NG"
            read_parameters!(r, f, at, letter, letter == 'N' ? 1 : 3)
            add_input!(r, letter == 'N' ? POISSON : GAUSSIAN, variable, 0, length(r.listed) - (letter == 'N' ? 0 : 2))
            return check_end(r, f, at, letter)
        end
        field = next_field!(f)
        isempty(field) && refuse_fields(r, f, at, letter)
        if letter == 'I'
            category = integer(r, f, field, "a category", 0, typemax(Int32) - 1)
            add_input!(r, INDICATOR, variable, category + 1, category)
        elseif letter == 'B'
            trials, field = integer(r, f, field, "a number of trials", 0, typemax(Int32) - 1), next_field!(f)
            isempty(field) && refuse_fields(r, f, at, letter)
            success = exponential(r, f, field)
            success <= 1 + JPC_TOLERANCE || refuse_unit(r, "the probability of success is $success")
            add_input!(r, BINOMIAL, variable, trials + 1, 0, min(success, 1.0))
        elseif letter == 'O'
            levels = integer(r, f, field, "a number of categories", 1, typemax(Int32))
            read_parameters!(r, f, at, letter, 2)
            add_input!(r, LOGISTIC, variable, levels, length(r.listed) - 1)
        else
            read_categories!(r, f, variable, field)
        end
    end
    check_end(r, f, at, letter)
end

"An input's line is over."
check_end(r::JpcReader, f::Fields, at, letter) =
    isempty(next_field!(f)) ||
    refuse(r, "unit $(length(r.builder.kind) - 1): found $(1 + fields_left(Fields(f.bytes, at, f.last))) fields on a line `$letter`")

"The next `count` numbers of a line, to the list of those that wait for the tables."
function read_parameters!(r::JpcReader, f::Fields, at, letter, count)
    for _ in 1:count
        field = next_field!(f)
        isempty(field) && refuse_fields(r, f, at, letter)
        value = decimal(f, field)
        value === nothing || !isfinite(value) ? refuse_unit(r, "found $(quoted(f, field)), wanted a number") : push!(r.listed, value)
    end
end

"A categorical's line, from its first probability on."
function read_categories!(r::JpcReader, f::Fields, variable, field)
    place, total = length(r.listed) + 1, 0.0
    while !isempty(field)
        p = exponential(r, f, field)
        total += p
        push!(r.listed, p > 0 ? max(p, nextfloat(0f0)) : p)  # what a Float32 cannot hold is not impossible
        field = next_field!(f)
        pause(100)
    end
    settle!(r, view(r.listed, place:length(r.listed)), total)
    add_input!(r, CATEGORICAL, variable, length(r.listed) - place + 1, place)
end

function add_input!(r::JpcReader, kind, variable, categories, place, success=0)
    unit = add_unit!(r.builder, kind, variable, categories, 0, 0, success)
    push!(r.inputs, JpcInput(unit, r.line, categories, place))
    r.num_vars = max(r.num_vars, variable)
end

"""
Gives the inputs their parameters. Those of one variable and kind share a table, wherever their lines are: the plan evaluates them
as one group.
"""
function lay_out_tables!(r::JpcReader)
    b, kinds = r.builder, Int(GAUSSIAN - CATEGORICAL) + 1
    categories, units = zeros(Int, r.num_vars), zeros(Int, r.num_vars, kinds)
    for input in r.inputs
        i = b.variable[input.unit]
        categories[i] = max(categories[i], input.categories)
        units[i, b.kind[input.unit] - CATEGORICAL + 1] += 1
        pause(10)
    end
    next = zeros(Int, r.num_vars, kinds)  # where the table's next unit begins; 0 before there is a table
    for input in r.inputs
        u = input.unit
        i, k = Int(b.variable[u]), b.kind[u] - CATEGORICAL + 1
        r.line, b.categories[u], b.param_stride[u] = input.line, has_table(b.kind[u]) ? categories[i] : 0, units[i, k]
        b.kind[u] in (LITERAL, BINOMIAL, LOGISTIC) && input.categories < categories[i] &&
            refuse(r, "unit $(u - 1): variable $i has $(input.categories) categories here, $(categories[i]) elsewhere")
        if next[i, k] == 0
            next[i, k] = length(b.leaf) + 1
            entries = num_entries(b.kind[u], b.categories[u]) * units[i, k]
            next[i, k] + entries <= JPC_FREE + JPC_ENTRIES_PER_BYTE * r.bytes ||
                refuse(r, "unit $(u - 1): $(categories[i]) categories are more than a file of $(r.bytes) bytes may ask for")
            check_memory("line $(r.line)", "a table of $(categories[i]) categories for $(units[i, k]) inputs", 4.0 * entries)
            resize!(b.leaf, length(b.leaf) + entries)
            in_pieces(range -> fill!(view(b.leaf, range), 0f0), next[i, k]:length(b.leaf))
        end
        b.param_start[u] = next[i, k]
        next[i, k] += 1
        fill_in!(r, input)
    end
end

function fill_in!(r::JpcReader, input::JpcInput)
    b, u = r.builder, input.unit
    start, stride = b.param_start[u], b.param_stride[u]
    if b.kind[u] == CATEGORICAL
        for category in 0:input.categories - 1
            b.leaf[start + category * stride] = r.listed[input.place + category]
        end
    elseif b.kind[u] == BINOMIAL
        fill_binomial!(probabilities(b, u), b.success[u])
    elseif b.kind[u] == LOGISTIC
        location, scale = r.listed[input.place], r.listed[input.place + 1]
        scale > 0 || refuse(r, "unit $(u - 1): found the scale $scale, wanted a number above 0")
        set_logistic!(b, u, location, scale)
    elseif !has_table(b.kind[u])
        set_entries!(b, u, view(r.listed, input.place:input.place + (b.kind[u] == POISSON ? 0 : 2)))
    else
        b.leaf[start + input.place * stride] = 1
    end
    pause(10 + 10 * input.categories)
end

"""
The prior weights of the heads that the header names, in its order; the last unit, the sum over them, is taken off. A head that it
leaves out has weight 0.
"""
function take_head_weights!(r::JpcReader)
    b, head_weight = r.builder, zeros(Float32, length(r.heads))
    first_edge, mixed = b.child_start[end - 1], b.kind[end] == SUM
    r.line = r.heads_line
    left = Dict{Int32,Vector{Int}}()  # edges of the last unit to each child, the last one first
    for e in reverse(first_edge:length(b.child))
        push!(get!(() -> Int[], left, b.child[e]), e)
    end
    taken = 0
    for (i, head) in enumerate(r.heads)
        edges = get(left, head, Int[])
        isempty(edges) && continue
        head_weight[i] = b.weight[pop!(edges)]
        taken += 1
    end
    mixed && taken == length(b.child) - first_edge + 1 || refuse(r, "the heads are not the children of the last unit")
    for array in (b.kind, b.variable, b.categories, b.param_start, b.param_stride, b.success, b.child_start)
        pop!(array)
    end
    resize!(b.child, first_edge - 1)
    resize!(b.weight, first_edge - 1)
    return head_weight
end

"""
    write_jpc(path, circuit; about = "")

Writes Juice.jl's text format: unit u of the circuit has the id u - 1, its edges come in order, and numbers are the shortest
decimals that give the same Float32. There is no `-Inf`: an edge of weight 0 is left out, and a probability of 0 in an input is
written as log(1.4e-45) = $(log(nextfloat(0f0))), the smallest Float32 above 0. Unless the last unit is the only head, a sum over
the heads is added, with their prior weights, which `read_jpc` takes off again. Equal circuits give equal bytes. The lines of
`about`, for people, go to the header.
"""
function write_jpc(path::AbstractString, c::Circuit; about::AbstractString="")
    advance!(JpcWriter(path, c, about))
    return nothing
end

"A file in the making. [`advance!`](@ref) goes on with it for about so many seconds; with the last unit, it is closed."
mutable struct JpcWriter
    io::IOStream
    circuit::Circuit
    mixed::Bool     # whether it ends in a mixture of the heads
    written::Int    # units
end

function JpcWriter(path::AbstractString, c::Circuit, about::AbstractString)
    lines = split(about, '\n'; keepempty=false)
    any(startswith.(lines, "heads")) && throw(ArgumentError("about: found a line that begins with `heads`, which names units"))
    mixed, io = c.heads != [num_units(check(c))], open(path, "w")  # what cannot be read is not written
    print(io, "c Juice probabilistic circuit, by lvd-juice\n")
    for line in lines
        print(io, "c ", line, '\n')
    end
    mixed && print(io, "c heads ", join(c.heads .- 1, ' '), '\n')
    print(io, "jpc ", num_units(c) + mixed, '\n')
    return JpcWriter(io, c, mixed, 0)
end

"Returns how many units are written."
function advance!(w::JpcWriter, seconds::Real=Inf)
    started, line, n = time(), IOBuffer(), num_units(w.circuit)
    while w.written < n
        print_unit(line, w.circuit, w.written += 1)
        write(w.io, take!(line))
        w.written < n && w.written % 64 == 0 && time() - started > seconds && return w.written
    end
    w.mixed && print_mixture(w.io, w.circuit)
    close(w.io)
    return w.written
end

# Through Float64, so that every platform and version rounds to the same Float32.
log_weight(p) = Float32(log(Float64(p)))
log_parameter(p) = log_weight(max(p, nextfloat(0f0)))  # what a file can hold

function print_unit(io::IO, c::Circuit, u::Int)
    kind, id, variable = c.kind[u], u - 1, c.variable[u]
    if kind == PRODUCT
        print(io, "P ", id, " 0 ", length(children(c, u)))
        for v in children(c, u)
            print(io, ' ', v - 1)
            pause(100)
        end
    elseif kind == SUM
        print_sum(io, id, children(c, u), view(c.weight, edges(c, u)))
    elseif kind == CATEGORICAL
        print(io, "C ", id, " 0 ", variable)
        for p in probabilities(c, u)
            print(io, ' ', log_parameter(p))
            pause(500)
        end
    elseif kind == BINOMIAL
        print(io, "B ", id, " 0 ", variable, ' ', c.categories[u] - 1, ' ', log_parameter(c.success[u]))
    elseif kind == LOGISTIC
        print(io, "O ", id, " 0 ", variable, ' ', c.categories[u])
        foreach(place -> print(io, ' ', c.leaf[place]), logistic_places(c, u))
    elseif kind == POISSON
        print(io, "N ", id, " 0 ", variable, ' ', c.leaf[entry_place(c, u, 0)])
    elseif kind == GAUSSIAN
        print(io, "G ", id, " 0 ", variable)
        foreach(k -> print(io, ' ', c.leaf[entry_place(c, u, k)]), 0:2)
    else
        category = findfirst(==(1), probabilities(c, u)) - 1
        kind == LITERAL ? print(io, "L ", id, " 0 ", category == 1 ? variable : -variable) :
                          print(io, "I ", id, " 0 ", variable, ' ', category)
    end
    print(io, '\n')
end

function print_mixture(io::IO, c::Circuit)
    print_sum(io, num_units(c), c.heads, c.head_weight)
    print(io, '\n')
end

"A sum without its edges of weight 0."
function print_sum(io::IO, id, children, weights)
    print(io, "S ", id, " 0 ", count(>(0), weights))
    for (v, w) in zip(children, weights)
        w > 0 && print(io, ' ', v - 1, ' ', log_parameter(w))
        pause(500)
    end
end
