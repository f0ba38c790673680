# The circuit: units, edges and parameters as plain arrays. How it is evaluated is the plan's business (plan.jl).

const PRODUCT = 0x01
const SUM = 0x02
const CATEGORICAL = 0x03   # input: a probability for each category, learned
const INDICATOR = 0x04     # input: 1 for one category, 0 for the others
const LITERAL = 0x05       # an indicator of a Boolean variable
const BINOMIAL = 0x06      # input: successes in N trials, N + 1 categories; the probability of success is learned
const LOGISTIC = 0x07      # input: a discretised logistic over ordered categories; location and scale are learned
const POISSON = 0x08       # input: over counts, without a table; the rate is learned
const GAUSSIAN = 0x09      # input: over real numbers, without a table; mean and deviation are learned

isinput(kind::UInt8) = kind >= CATEGORICAL

"Whether an input is a table of probabilities of categories, whatever they come from; the others are formulas over numbers."
has_table(kind::UInt8) = CATEGORICAL <= kind <= LOGISTIC

"""
    Circuit(num_vars, kind, variable, categories, param_start, param_stride, success, child_start, child, weight, leaf, heads,
            head_weight = equal)

A smooth, decomposable circuit of `n` units (children before parents) with one or more heads.

| field | type, length | meaning |
|---|---|---|
| `num_vars` | Int | variables 1..num_vars |
| `kind` | UInt8, n | `PRODUCT`, `SUM`, or an input: `CATEGORICAL`, `INDICATOR`, `LITERAL`, `BINOMIAL`, `LOGISTIC`, `POISSON`, `GAUSSIAN` |
| `variable`, `categories` | Int32, n | of an input unit: its variable and number of categories, which is 0 over numbers; else 0 |
| `param_start`, `param_stride` | Int64, n | category c (from 0) of an input unit has probability `leaf[param_start + c * param_stride]` |
| `success` | Float32, n | of a `BINOMIAL`: the probability of success; else 0 |
| `child_start` | Int64, n + 1 | the edges of unit u are `child_start[u]:child_start[u + 1] - 1` |
| `child` | Int32, edges | unit indices |
| `weight` | Float32, edges | parameters of sum edges, linear, summing to 1 for each sum; 1 on product edges |
| `leaf` | Float32 | the inputs' distributions, linear: inputs over categories are evaluated by looking one up here. Behind the table of an input that has one to learn it by lie its parameters; of those without a table there is nothing else ([`num_entries`](@ref)) |
| `heads` | Int32 | the heads' unit indices |
| `head_weight` | Float32 | the heads' prior weights, summing to 1: what a mixture of them would have. They enter no likelihood |

What is kept of `child` is one list for neighbouring units that have the same children, as the sums of a dense block have: unit
u's list begins at `child[list[u]]` (`list`: Int32, n). [`children`](@ref) and [`child`](@ref) read it.

Structure is fixed; `weight`, `leaf` and `success` are learned in place. Throws an `ArgumentError` that names the unit and the reason
where the arrays are no valid circuit, inputs of one variable with different numbers of categories included; `Plan` checks
smoothness and decomposability.
"""
struct Circuit
    num_vars::Int
    kind::Vector{UInt8}
    variable::Vector{Int32}
    categories::Vector{Int32}
    param_start::Vector{Int64}
    param_stride::Vector{Int64}
    success::Vector{Float32}
    child_start::Vector{Int64}
    list::Vector{Int32}
    child::Vector{Int32}
    weight::Vector{Float32}
    leaf::Vector{Float32}
    heads::Vector{Int32}
    head_weight::Vector{Float32}

    function Circuit(num_vars, kind, variable, categories, param_start, param_stride, success, child_start, child, weight,
                     leaf, heads, head_weight=equal_shares(length(heads)))
        check_sizes(kind, variable, categories, param_start, param_stride, success, child_start, child, weight, heads, head_weight)
        list, lists = share_lists(child_start, child)
        return check(new(num_vars, kind, variable, categories, param_start, param_stride, success, child_start, list, lists, weight,
                         leaf, heads, head_weight))
    end
end

equal_shares(n) = fill(Float32(1 / n), n)

num_units(c::Circuit) = length(c.kind)
num_heads(c::Circuit) = length(c.heads)
num_edges(c::Circuit) = length(c.weight)
num_sum_edges(c::Circuit) = count_units(u -> c.kind[u] == SUM ? length(edges(c, u)) : 0, c)
num_params(c::Circuit) =
    num_sum_edges(c) + count_units(u -> num_input_params(c.kind[u], c.categories[u]), c)

function count_units(f, c::Circuit)
    total = 0
    for u in 1:num_units(c)
        total += f(u)
        pause(2)
    end
    return total
end

"The range of edge indices of unit `u`."
@inline edges(c::Circuit, u) = c.child_start[u]:c.child_start[u + 1] - 1

"The children of unit `u`."
children(c::Circuit, u) = view(c.child, range(c.list[u], length=length(edges(c, u))))

"The child of unit `u` at its edge `e`."
@inline child(c::Circuit, u, e) = c.child[c.list[u] + e - c.child_start[u]]

"The child of every edge."
all_children(c::Circuit) = all_children(c.child_start, c.list, c.child)

function all_children(child_start, list, lists)
    found = Vector{Int32}(undef, last(child_start) - 1)
    for u in eachindex(list)
        count = child_start[u + 1] - child_start[u]
        copyto!(found, child_start[u], lists, list[u], count)
        pause(10 + count)
    end
    return found
end

"Where each unit's list of children begins, and the lists: a unit with the children of the unit before shares its list."
function share_lists(child_start, child)
    list, shared, total = zeros(Int32, length(child_start) - 1), fill(false, length(child_start) - 1), 0
    for u in eachindex(list)
        first, count = child_start[u], child_start[u + 1] - child_start[u]
        if u > 1 && child_start[u - 1] + count == first && same_entries(child, first, child_start[u - 1], count)
            list[u], shared[u] = list[u - 1], true
        else
            list[u] = total + 1
            total += count
        end
        pause(10 + count)
    end
    lists = Vector{Int32}(undef, total)
    for u in eachindex(list)
        shared[u] || copyto!(lists, list[u], child, child_start[u], child_start[u + 1] - child_start[u])
        pause(10)
    end
    return list, lists
end

function same_entries(array, first, other, count)
    for i in 0:count - 1
        @inbounds array[first + i] == array[other + i] || return false
    end
    return true
end

"The probabilities of the categories of input `u`."
probabilities(c::Circuit, u) = view(c.leaf, range(c.param_start[u], step=c.param_stride[u], length=c.categories[u]))

# What `category_limits` gives for variables without a limit: those of counts, or at which no input looks; and those of real numbers.
const COUNTS, REALS = Int32(0), Int32(-1)

"The number of categories of each variable, or what it has in place of them."
function category_limits(c::Circuit)
    limits = zeros(Int32, c.num_vars)
    for u in 1:num_units(c)
        isinput(c.kind[u]) && (limits[c.variable[u]] = c.kind[u] == GAUSSIAN ? REALS : c.categories[u])
        pause(2)
    end
    return limits
end

invalid(u, reason) = throw(ArgumentError("invalid circuit: unit $(u - 1): $reason"))  # ids count from 0, as in .jpc

const WEIGHT_TOLERANCE = 1e-3  # of a sum's total weight: Float32 sums over thousands of edges, decimal files

function check_sizes(kind, variable, categories, param_start, param_stride, success, child_start, child, weight, heads, head_weight)
    n = length(kind)
    for (name, array) in (("variable", variable), ("categories", categories), ("param_start", param_start),
                          ("param_stride", param_stride), ("success", success))
        length(array) == n || throw(ArgumentError("invalid circuit: $name has $(length(array)) entries for $n units"))
    end
    length(child_start) == n + 1 && child_start[1] == 1 && child_start[end] == length(child) + 1 ||
        throw(ArgumentError("invalid circuit: child_start does not cover the $(length(child)) edges"))
    for u in 1:n
        child_start[u + 1] >= child_start[u] || invalid(u, "its children end before they begin")
        pause(1)
    end
    length(weight) == length(child) ||
        throw(ArgumentError("invalid circuit: $(length(weight)) weights for $(length(child)) edges"))
    isempty(heads) && throw(ArgumentError("invalid circuit: no head"))
    length(head_weight) == length(heads) ||
        throw(ArgumentError("invalid circuit: $(length(head_weight)) prior weights for $(length(heads)) heads"))
    all(w -> 0 <= w < Inf, head_weight) && abs(sum(Float64, head_weight) - 1) <= WEIGHT_TOLERANCE ||
        throw(ArgumentError("invalid circuit: the heads' prior weights sum to $(sum(head_weight)), not 1"))
end

"Throws an `ArgumentError` that says what is wrong with a circuit, if anything is; returns it."
function check(c::Circuit)
    n, entries = num_units(c), 0
    first_input = zeros(Int32, c.num_vars)  # of each variable: a value means the same to all of its inputs
    for u in 1:n
        for v in children(c, u)
            1 <= v < u || invalid(u, "child $(v - 1) does not come before it")
        end
        kind = c.kind[u]
        if CATEGORICAL <= kind <= GAUSSIAN
            entries += num_entries(kind, max(c.categories[u], 0))
            entries <= length(c.leaf) || invalid(u, "inputs up to this one have more categories than there are parameters")
            check_input(c, u)
            first_input[c.variable[u]] == 0 && (first_input[c.variable[u]] = u)
            v = first_input[c.variable[u]]
            has_table(kind) || c.kind[v] == kind || invalid(u, "variable $(c.variable[u]) has inputs of another kind, as unit $(v - 1)")
            c.categories[u] == c.categories[v] ||
                invalid(u, "variable $(c.variable[u]) has $(c.categories[u]) categories here, $(c.categories[v]) in unit $(v - 1)")
        elseif kind == PRODUCT || kind == SUM
            isempty(children(c, u)) && invalid(u, "no children")
            weights = view(c.weight, edges(c, u))
            kind == SUM ? check_weights(u, weights) : all(==(1), weights) || invalid(u, "a product with edges of other weights than 1")
        else
            invalid(u, "unknown kind $kind")
        end
        pause(10 + 3 * length(edges(c, u)))
    end
    for h in c.heads
        1 <= h <= n || throw(ArgumentError("invalid circuit: head $(h - 1) is no unit of 0..$(n - 1)"))
    end
    return c
end

function check_input(c, u)
    1 <= c.variable[u] <= c.num_vars || invalid(u, "variable $(c.variable[u]) is outside 1..$(c.num_vars)")
    c.categories[u] >= 1 || !has_table(c.kind[u]) || invalid(u, "no categories")
    isempty(children(c, u)) || invalid(u, "an input with children")
    start, stride, room = c.param_start[u], c.param_stride[u], length(c.leaf)
    1 <= start <= room && 1 <= stride <= room && start + (num_entries(c.kind[u], c.categories[u]) - 1) * stride <= room ||
        invalid(u, "its parameters lie outside the leaf array")
    has_table(c.kind[u]) || return check_number(c, u)
    check_weights(u, probabilities(c, u))
    if c.kind[u] == BINOMIAL
        0 <= c.success[u] <= 1 || invalid(u, "the probability of success $(c.success[u]) is outside [0, 1]")
        for (x, p) in enumerate(probabilities(c, u))
            abs(p - exp(log_binomial(c.categories[u] - 1, x - 1, c.success[u]))) <= 1e-5 ||
                invalid(u, "its probabilities are not those of $(c.categories[u] - 1) trials with success $(c.success[u])")
            pause(100)
        end
    elseif c.kind[u] == LOGISTIC
        check_logistic(c, u)
    elseif c.kind[u] != CATEGORICAL
        count(==(1), probabilities(c, u)) == 1 || invalid(u, "an indicator of not one category")
        c.kind[u] == LITERAL && c.categories[u] != 2 && invalid(u, "a literal of $(c.categories[u]) categories")
    end
    pause(3 * Int(c.categories[u]))
end

function check_weights(u, weights)
    total = 0.0
    for w in weights
        0 <= w < Inf || invalid(u, "parameter $w is no probability")
        total += w
    end
    abs(total - 1) <= WEIGHT_TOLERANCE || invalid(u, "its parameters sum to $total, not 1")
end

"Grows a circuit's arrays unit by unit; `Circuit(builder, heads)` finishes it."
struct Builder
    num_vars::Int
    kind::Vector{UInt8}
    variable::Vector{Int32}
    categories::Vector{Int32}
    param_start::Vector{Int64}
    param_stride::Vector{Int64}
    success::Vector{Float32}
    child_start::Vector{Int64}
    child::Vector{Int32}
    weight::Vector{Float32}
    leaf::Vector{Float32}
end

Builder(num_vars) = Builder(num_vars, UInt8[], Int32[], Int32[], Int64[], Int64[], Float32[], Int64[1], Int32[], Float32[],
                            Float32[])

"With room for so many units, edges and entries of tables."
function Builder(num_vars, units::Real, edges::Real, entries::Real)
    b = Builder(num_vars)
    for array in (b.kind, b.variable, b.categories, b.param_start, b.param_stride, b.success, b.child_start)
        sizehint!(array, Int(units) + 1)
    end
    sizehint!(b.child, Int(edges))
    sizehint!(b.weight, Int(edges))
    sizehint!(b.leaf, Int(entries))
    return b
end

Circuit(b::Builder, heads, head_weight=equal_shares(length(heads))) =
    Circuit(b.num_vars, b.kind, b.variable, b.categories, b.param_start, b.param_stride, b.success, b.child_start, b.child,
            b.weight, b.leaf, Vector{Int32}(heads), Vector{Float32}(head_weight))

function add_unit!(b::Builder, kind, variable=0, categories=0, param_start=0, param_stride=0, success=0)
    push!(b.kind, kind)
    push!(b.variable, variable)
    push!(b.categories, categories)
    push!(b.param_start, param_start)
    push!(b.param_stride, param_stride)
    push!(b.success, success)
    push!(b.child_start, length(b.child) + 1)
    pause(20)
    return length(b.kind)
end

"""
    add_table!(b, variable, count, categories; kind = CATEGORICAL, success = 0) -> range of units

`count` inputs, whose probabilities are still to be filled in ([`probabilities`](@ref)). Laid out so that one category's
probabilities of all these units are neighbours: an observed value picks one contiguous vector.
"""
function add_table!(b::Builder, variable, count::Int, categories::Integer; kind=CATEGORICAL, success=nothing)
    first_param = length(b.leaf) + 1
    resize!(b.leaf, length(b.leaf) + count * num_entries(kind, categories))
    for k in 1:count
        add_unit!(b, kind, variable, categories, first_param + k - 1, count, success === nothing ? 0 : success[k])
    end
    return last_units(b, count)
end

weights(b::Builder, u) = view(b.weight, b.child_start[u]:b.child_start[u + 1] - 1)
probabilities(b::Builder, u) = view(b.leaf, range(b.param_start[u], step=b.param_stride[u], length=b.categories[u]))

"One input for each row of `probabilities`, a `(units, categories)` matrix: see [`add_table!`](@ref)."
function add_inputs!(b::Builder, variable, probabilities::AbstractMatrix; kwargs...)
    units = add_table!(b, variable, size(probabilities, 1), size(probabilities, 2); kwargs...)
    copyto!(b.leaf, length(b.leaf) - length(probabilities) + 1, probabilities, 1, length(probabilities))
    return units
end

"Inputs with the parameters of `units` of `c`, all of one variable and kind, in a table of their own."
function copy_inputs!(b::Builder, c::Circuit, units)
    first_entry, categories = length(b.leaf), c.categories[units[1]]
    added = add_table!(b, c.variable[units[1]], length(units), categories; kind=c.kind[units[1]], success=c.success[units])
    for entry in 0:num_entries(c.kind[units[1]], categories) - 1
        @inbounds for (k, u) in enumerate(units)
            b.leaf[first_entry + k + entry * length(units)] = c.leaf[c.param_start[u] + entry * c.param_stride[u]]
        end
        pause(2 * length(units))
    end
    return added
end

"The range of the `count` units that were added last."
last_units(b::Builder, count::Int) = length(b.kind) - count + 1:length(b.kind)

"One indicator of `variable` for each of the `values`, among `categories` categories."
add_indicators!(b::Builder, variable, values, categories; kind=INDICATOR) =
    add_inputs!(b, variable, Float32[v == category for v in values, category in 0:categories - 1]; kind=kind)

function add_product!(b::Builder, children)
    for v in children
        push!(b.child, v)
        push!(b.weight, 1)
    end
    pause(10 * length(children))
    return add_unit!(b, PRODUCT)
end

function add_sum!(b::Builder, children, weights)
    append!(b.child, children)
    append!(b.weight, weights)
    pause(10 * length(children))
    return add_unit!(b, SUM)
end

"A sum whose weights, the last of `b.weight`, are still to be filled in."
function add_sum!(b::Builder, children)
    append!(b.child, children)
    resize!(b.weight, length(b.child))
    pause(10 * length(children))
    return add_unit!(b, SUM)
end
