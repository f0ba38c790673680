# Juice.jl's text format, `.jpc`: header lines `c ...`, a line `jpc COUNT`, then one line for each unit, children before parents:
#
#     L id 0 literal                    Boolean: 3 is X3 = 1, -3 is X3 = 0; variables count from 1
#     I id 0 variable category          indicator
#     C id 0 variable logp0 logp1 ...   categorical
#     B id 0 variable N logp            binomial: N trials, log probability of success
#     P id 0 count child ...            product
#     S id 0 count child logw ...       sum
#
# The ids are 0..COUNT-1 in order (the 0 behind them is Juice.jl's vtree, which we have not); the root is the last unit. A circuit
# whose last unit is not its one head ends in a sum over its heads, and says so in the header: `c heads ID ID ...`.

# What a file may ask for beyond its own size: variables, and probabilities in tables. Few bytes name a variable, an indicator's
# category or a binomial's trials, but they must not claim the machine's memory. A full set of 1024 indicators asks for fewer than
# 64 entries a byte.
const JPC_FREE = 2^16
const JPC_ENTRIES_PER_BYTE = 64

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

"What the lines of a file said so far. The inputs' tables are laid out at the end, when every variable's categories are known."
mutable struct JpcReader
    builder::Builder
    bytes::Int                  # of the file
    line::Int
    announced::Int              # units, by the line `jpc COUNT`; -1 before it
    heads::Vector{Int}          # units, by the line `c heads ID ID ...`; empty without one
    heads_line::Int
    inputs::Vector{JpcInput}
    listed::Vector{Float32}     # probabilities of the categorical inputs
    num_vars::Int
end

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
    r = JpcReader(Builder(0), filesize(path), 0, -1, Int[], 0, JpcInput[], Float32[], 0)
    open(io -> read_lines!(r, io), path)
    b, n = r.builder, length(r.builder.kind)
    r.announced >= 0 || throw(ArgumentError("found no line `jpc COUNT`"))
    n == r.announced || throw(ArgumentError("the file ends after $n of $(r.announced) units"))
    n > 0 || throw(ArgumentError("a circuit without units"))
    lay_out_tables!(r)
    heads, head_weight = isempty(r.heads) ? ([n], [1f0]) : (r.heads, take_head_weights!(r))
    return Circuit(r.num_vars, b.kind, b.variable, b.categories, b.param_start, b.param_stride, b.success, b.child_start,
                   b.child, b.weight, b.leaf, Vector{Int32}(heads), head_weight)
end

refuse(r::JpcReader, reason) = throw(ArgumentError("line $(r.line): $reason"))
refuse_unit(r::JpcReader, reason) = refuse(r, "unit $(length(r.builder.kind)): $reason")  # the one that comes next

"A field as an error shows it: short, on one line."
quoted(field) = repr(first(field, 24))

function read_lines!(r::JpcReader, io::IO)
    for line in eachline(io)
        r.line += 1
        fields = split(r.line == 1 ? lstrip(line, '\ufeff') : line)
        isempty(fields) && continue
        if startswith(fields[1], 'c')
            fields[1] == "c" && length(fields) > 1 && fields[2] == "heads" && read_heads!(r, fields)
        elseif r.announced >= 0
            read_unit!(r, fields)
        else
            fields[1] == "jpc" && length(fields) == 2 || refuse(r, "found $(quoted(line)), wanted `jpc COUNT`")
            r.announced = integer(r, fields[2], "the number of units", 0, typemax(Int))
        end
    end
end

function integer(r::JpcReader, field, name, low, high)
    value = tryparse(Int, field)
    value === nothing && refuse(r, "found $(quoted(field)) for $name, wanted an integer")
    low <= value <= high || refuse(r, "found $value for $name, wanted $low..$high")
    return value
end

"The number behind a logarithm. Read as the Float32 that it was, it is written again with the same digits."
function exponential(r::JpcReader, field)
    value = tryparse(Float32, field)
    value === nothing && (value = tryparse(Float32, replace(field, 'f' => 'e')))  # Julia shows a Float32 as 1.0f-5
    value === nothing || isnan(value) || value == Inf32 ? refuse_unit(r, "found $(quoted(field)), wanted a logarithm") :
                                                          exp(Float64(value))
end

function read_heads!(r::JpcReader, fields)
    isempty(r.heads) || refuse(r, "the heads are named twice, on line $(r.heads_line) before")
    r.heads_line = r.line
    for field in view(fields, 3:length(fields))
        push!(r.heads, integer(r, field, "a head", 0, typemax(Int32) - 1) + 1)
    end
end

function read_unit!(r::JpcReader, fields)
    b, kind = r.builder, fields[1]
    kind in ("L", "I", "C", "B", "P", "S") || refuse(r, "found $(quoted(kind)), wanted a unit: L, I, C, B, P or S")
    least = kind == "B" ? 6 : kind in ("I", "C") ? 5 : 4
    length(fields) >= least || refuse(r, "found $(length(fields)) fields, wanted $least or more: is it cut off?")
    id = integer(r, fields[2], "a unit's id", 0, typemax(Int32) - 1)
    id == length(b.kind) || refuse(r, "found unit $id, wanted unit $(length(b.kind)): ids count up from 0")
    id < r.announced || refuse(r, "found unit $id, `jpc` announced $(r.announced)")
    if kind == "P"
        read_children!(r, fields, 1)
        add_unit!(b, PRODUCT)
    elseif kind == "S"
        first_edge = length(b.child) + 1
        total = read_children!(r, fields, 2)
        settle!(r, view(b.weight, first_edge:length(b.weight)), total)
        add_unit!(b, SUM)
    else
        read_input!(r, kind, fields)
    end
end

"The edges of a product (1 field each) or a sum (2), without those of weight 0; returns their total weight, before rounding."
function read_children!(r::JpcReader, fields, each)
    b, total = r.builder, 0.0
    isempty(b.kind) && refuse_unit(r, "no units come before it that could be its children")
    count = integer(r, fields[4], "the number of children", 1, typemax(Int32))
    length(fields) - 4 == each * count ||
        refuse_unit(r, "announces $count children: found $(length(fields) - 4) fields for them, wanted $(each * count)")
    for i in 5:each:length(fields)
        child = integer(r, fields[i], "a child", 0, length(b.kind) - 1) + 1
        weight = each == 2 ? exponential(r, fields[i + 1]) : 1.0
        total += weight
        Float32(weight) > 0 || continue
        push!(b.child, child)
        push!(b.weight, weight)
    end
    return total
end

"Makes parameters sum to 1 that almost do."
function settle!(r::JpcReader, weights, total)
    abs(total - 1) <= JPC_TOLERANCE || refuse_unit(r, "its parameters sum to $total, not 1")
    abs(total - 1) <= JPC_ROUNDING || (weights ./= total)
end

function read_input!(r::JpcReader, kind, fields)
    largest = min(JPC_FREE + r.bytes, typemax(Int32))
    literal = integer(r, fields[4], kind == "L" ? "a literal" : "a variable", kind == "L" ? -largest : 1, largest)
    variable = abs(literal)
    variable > 0 || refuse_unit(r, "the literal 0 is no variable's")
    kind == "C" || length(fields) == (kind == "L" ? 4 : kind == "I" ? 5 : 6) ||
        refuse_unit(r, "found $(length(fields)) fields on a line `$kind`")
    if kind == "L"
        add_input!(r, LITERAL, variable, 2, literal > 0 ? 1 : 0)
    elseif kind == "I"
        category = integer(r, fields[5], "a category", 0, typemax(Int32) - 1)
        add_input!(r, INDICATOR, variable, category + 1, category)
    elseif kind == "B"
        trials = integer(r, fields[5], "a number of trials", 0, typemax(Int32) - 1)
        success = exponential(r, fields[6])
        success <= 1 + JPC_TOLERANCE || refuse_unit(r, "the probability of success is $success")
        add_input!(r, BINOMIAL, variable, trials + 1, 0, min(success, 1.0))
    else
        place, total = length(r.listed) + 1, 0.0
        for i in 5:length(fields)
            p = exponential(r, fields[i])
            total += p
            push!(r.listed, p > 0 ? max(p, nextfloat(0f0)) : p)  # what a Float32 cannot hold is not impossible
        end
        settle!(r, view(r.listed, place:length(r.listed)), total)
        add_input!(r, CATEGORICAL, variable, length(fields) - 4, place)
    end
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
    b, kinds = r.builder, Int(BINOMIAL - CATEGORICAL) + 1
    categories, units = zeros(Int, r.num_vars), zeros(Int, r.num_vars, kinds)
    for input in r.inputs
        i = b.variable[input.unit]
        categories[i] = max(categories[i], input.categories)
        units[i, b.kind[input.unit] - CATEGORICAL + 1] += 1
    end
    next = zeros(Int, r.num_vars, kinds)  # where the table's next unit begins; 0 before there is a table
    for input in r.inputs
        u = input.unit
        i, k = Int(b.variable[u]), b.kind[u] - CATEGORICAL + 1
        r.line, b.categories[u], b.param_stride[u] = input.line, categories[i], units[i, k]
        b.kind[u] in (LITERAL, BINOMIAL) && input.categories < categories[i] &&
            refuse(r, "unit $(u - 1): variable $i has $(input.categories) categories here, $(categories[i]) elsewhere")
        if next[i, k] == 0
            next[i, k] = length(b.leaf) + 1
            entries = categories[i] * units[i, k]
            next[i, k] + entries <= JPC_FREE + JPC_ENTRIES_PER_BYTE * r.bytes ||
                refuse(r, "unit $(u - 1): $(categories[i]) categories are more than a file of $(r.bytes) bytes may ask for")
            append!(b.leaf, zeros(Float32, entries))
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
        b.leaf[range(start, step=stride, length=input.categories)] = binomial_table(input.categories - 1, b.success[u])
    else
        b.leaf[start + input.place * stride] = 1
    end
end

"""
The prior weights of the heads that the header names, in its order; the last unit, the sum over them, is taken off. A head that it
leaves out has weight 0.
"""
function take_head_weights!(r::JpcReader)
    b, head_weight = r.builder, zeros(Float32, length(r.heads))
    first_edge = b.child_start[end - 1]
    r.line = r.heads_line
    left = b.kind[end] == SUM ? collect(first_edge:length(b.child)) : Int[]
    for (i, head) in enumerate(r.heads)
        at = findfirst(e -> b.child[e] == head, left)
        at === nothing || (head_weight[i] = b.weight[splice!(left, at)])
    end
    b.kind[end] == SUM && isempty(left) || refuse(r, "the heads are not the children of the last unit")
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
    mixed, io = c.heads != [num_units(c)], open(path, "w")
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
log_parameter(p) = Float32(log(Float64(max(p, nextfloat(0f0)))))

function print_unit(io::IO, c::Circuit, u::Int)
    kind, id, variable = c.kind[u], u - 1, c.variable[u]
    if kind == PRODUCT
        print(io, "P ", id, " 0 ", length(children(c, u)))
        for v in children(c, u)
            print(io, ' ', v - 1)
        end
    elseif kind == SUM
        print_sum(io, id, children(c, u), view(c.weight, edges(c, u)))
    elseif kind == CATEGORICAL
        print(io, "C ", id, " 0 ", variable)
        for p in probabilities(c, u)
            print(io, ' ', log_parameter(p))
        end
    elseif kind == BINOMIAL
        print(io, "B ", id, " 0 ", variable, ' ', c.categories[u] - 1, ' ', log_parameter(c.success[u]))
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
    end
end
